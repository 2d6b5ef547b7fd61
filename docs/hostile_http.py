"""Hostile requests to Triton's HTTP endpoint: JSON and binary bodies, headers, paths, compression."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import random
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from mutations import json_bytes, spoilt

TIMEOUT_S = 20.0
_LENGTHS = ("0", "-1", "1", "99999999999999999999", "x", "")
_PATHS = (
    "/v2/models/{}/versions/99999999999999999999/infer", "/v2/models/{}/versions/-1/infer", "/v2/models/{}/generate",
    "/v2/models/{}/generate_stream", "/v2/models/..%2F..%2Fetc/infer", "/v2/models/%00/infer", "/v2//models/{}/infer",
    "/v2/models/{}/infer?x=" + "y" * 5_000, "/v2/models/" + "x" * 5_000 + "/infer", "/v2/models/{}/INFER",
)  # fmt: skip
_BOMB_BYTES = 64 << 20


class Http:
    """One connection, opened anew where the server has closed it.

    Args:
        address: HOST:PORT.
        model: That is asked.
        rows: Draws the rows of a request: each input's name and contents.
        compressed: Whether some bodies are; Triton 2.51 keeps those that it refuses (docs/security.md).
    """

    def __init__(
        self,
        address: str,
        model: str,
        rows: Callable[[random.Random], dict[str, list[bytes]]],
        *,
        compressed: bool,
    ) -> None:
        self._model, self._rows, self._compressed = model, rows, compressed
        host, _, port = address.rpartition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def send(self, chance: random.Random, failures: list[str]) -> str:
        """Sends a hostile request, and returns what came back in a word or two."""
        path = f"/v2/models/{self._model}/infer"
        if chance.random() < 0.05:
            path = chance.choice(_PATHS).format(self._model)
        body, headers = _body(chance, self._rows(chance))
        if self._compressed and chance.random() < 0.1:
            body, headers["Content-Encoding"] = _compressed(chance, body)
        began = time.monotonic()
        try:
            self._connection.request("POST", path, body, headers)
            answer = self._connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as exc:
            self._connection.close()
            if isinstance(exc, TimeoutError | ConnectionRefusedError):
                said = f"{type(exc).__name__} after {time.monotonic() - began:.1f} s"
                failures.append(f"{said} for {path[:80]} {headers} {body[:200]!r}")
            return f"closed ({type(exc).__name__})"
        return str(answer.status)


def _body(chance: random.Random, rows: dict[str, list[bytes]]) -> tuple[bytes, dict[str, str]]:
    """Returns a body that was valid before something in it was changed, and its headers."""
    if chance.random() < 0.5:
        inputs = [
            _input(name, texts, data=[text.decode("utf-8", "replace") for text in texts])
            for name, texts in rows.items()
        ]
        return json_bytes(chance, {"inputs": inputs, **_rest(chance)}), {}
    contents = [b"".join(len(text).to_bytes(4, "little") + text for text in texts) for texts in rows.values()]
    inputs = [
        _input(name, texts, parameters={"binary_data_size": len(content)})
        for (name, texts), content in zip(rows.items(), contents, strict=True)
    ]
    tree = {"inputs": inputs, **_rest(chance)}
    header = json_bytes(chance, tree) if chance.random() < 0.5 else json.dumps(tree).encode()
    length = (
        chance.choice(_LENGTHS) if chance.random() < 0.1 else str(len(header) + chance.choice([0] * 8 + [-1, 1, 9]))
    )
    body = header + b"".join(contents)
    return (spoilt(chance, body) if chance.random() < 0.5 else body), {"Inference-Header-Content-Length": length}


def _input(name: str, texts: Sequence[bytes], **rest: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(texts), 1], "datatype": "BYTES", **rest}


def _rest(chance: random.Random) -> dict[str, Any]:
    """Returns what a request may have beside its inputs."""
    rest: dict[str, Any] = {}
    if chance.random() < 0.3:
        rest["id"] = "request"
        rest["parameters"] = {"priority": 1, "timeout": 1_000_000, "binary_data_output": chance.random() < 0.5}
    if chance.random() < 0.3:
        rest["outputs"] = [{"name": "SCORE", "parameters": {"binary_data": True}}]
    return rest


def _compressed(chance: random.Random, body: bytes) -> tuple[bytes, str]:
    """Returns the body as a server would have to unpack it: rightly, wrongly, or a thousand times as large."""
    kind = chance.choice(["gzip", "deflate"])
    if chance.random() < 0.02:
        body = bytes(_BOMB_BYTES)
    packed = gzip.compress(body, 1) if kind == "gzip" else zlib.compress(body, 1)
    with contextlib.suppress(IndexError):
        packed = chance.choice([packed, spoilt(chance, packed), packed[: len(packed) // 2]])
    return packed, chance.choice([kind, kind, kind, "br", "identity"])
