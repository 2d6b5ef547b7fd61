"""Hostile requests to a real server: none may end it, hang it, change a neighbour's answer, or make its memory grow.

    python docs/fuzz.py model_repo classification "TEXT" [--requests 100000 --seed 0 --http]

Half of the requests are valid ones with something changed above the wire (shape, type, lengths, contents, names,
parameters); half are serialised messages with bytes changed, cut out or doubled, which gRPC hands on as they are. With
`--http` they go to the HTTP endpoint: JSON and binary bodies, paths, headers, compression (docs/hostile_http.py). All
the while a neighbour asks what is right, and each of its answers is compared with the first. Prints what came back by
status, and the resident memory of server and stubs in ten parts. Ends with 1 if anything of the above happened.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import grpc
import numpy as np
import psutil
from first_request import parse
from hostile_http import Http
from mutations import spoilt
from tritonclient.grpc import service_pb2
from tritonpress_client import Connection, TritonpressError
from tritonpress_server import TritonServer

_Change = Callable[[random.Random, Any], None]
METHOD = "/inference.GRPCInferenceService/ModelInfer"
NEAR = 1e-4
"""A neighbour's scores may differ by so much, in another batch."""
PARTS = 10
TIMEOUT_S = 20.0
TYPES = ("BYTES", "FP32", "INT64", "BOOL", "UINT8", "FP16", "", "STRING", "BF16")


def main() -> int:
    """Sends them, prints, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--http", action="store_true", help="to the HTTP endpoint instead")
    parser.add_argument("--compressed", action="store_true", help="with --http, also what is known to fill its memory")
    parser.add_argument("--classes", action="store_true", help="also what is known to end Triton 2.51")
    arguments, texts = parse(parser)
    chance = random.Random(arguments.seed)
    changes = (*_CHANGES, _classified) if arguments.classes else _CHANGES
    with (
        TritonServer(arguments.repository, models=[arguments.model]) as server,
        _Neighbour(server.grpc_url, arguments.model, texts) as neighbour,
    ):
        process = psutil.Process(server.pid)
        seen: Counter[str] = Counter()
        failures: list[str] = []
        memory_mib = [_memory_mib(process)]
        with (
            grpc.insecure_channel(server.grpc_url) as channel,
            closing(
                Http(
                    server.http_url,
                    arguments.model,
                    lambda chance: _rows(chance, texts),
                    compressed=arguments.compressed,
                )
            ) as http,
        ):
            call = channel.unary_unary(METHOD)  # bytes as they are
            for part in range(PARTS):
                for _ in range(arguments.requests // PARTS):
                    if arguments.http:
                        seen[http.send(chance, failures)] += 1
                        continue
                    payload = _payload(chance, changes, arguments.model, texts)
                    seen[_send(call, payload, failures)] += 1
                if not process.is_running():
                    failures.append("the server has ended")
                    break
                memory_mib.append(_memory_mib(process))
                print(f"part {part + 1}: {memory_mib[-1]:.0f} MiB, {dict(seen.most_common())}", flush=True)
        failures += neighbour.failures
    # The first part may still fill pools; from there on nothing may grow with the requests.
    if len(memory_mib) > PARTS and memory_mib[-1] > 1.1 * memory_mib[2] + 16:
        failures.append(f"memory grew from {memory_mib[2]:.0f} to {memory_mib[-1]:.0f} MiB")
    print(f"{sum(seen.values())} requests, {neighbour.answers} answers to the neighbour")
    for failure in failures[:20]:
        print(failure, file=sys.stderr)
    return int(bool(failures))


class _Neighbour:
    """Asks what is right, all the while."""

    def __init__(self, url: str, model: str, texts: dict[str, str]) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._url, self._model = url, model
        self._inputs = {name: np.array([[text]], object) for name, text in texts.items()}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> _Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _ask(self) -> None:
        with Connection(self._url, timeout_s=TIMEOUT_S) as connection:
            first = connection.infer(self._model, self._inputs)
            while not self._stopped.wait(0.01):
                try:
                    answer = connection.infer(self._model, self._inputs)
                except TritonpressError as exc:
                    self.failures.append(f"the neighbour was refused: {exc}")
                    continue
                self.answers += 1
                if not all(_same(answer[name], value) for name, value in first.items()):
                    self.failures.append(f"the neighbour got another answer: {answer}")


def _same(one: Any, other: Any) -> bool:
    if one.shape != other.shape:
        return False
    return bool(np.abs(one - other).max() <= NEAR) if one.dtype.kind == "f" else bool((one == other).all())


def _send(call: Any, payload: bytes, failures: list[str]) -> str:
    """Returns the status that came back."""
    began = time.monotonic()
    try:
        call(payload, timeout=TIMEOUT_S)
    except grpc.RpcError as exc:
        code = exc.code()
        if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
            failures.append(f"{code.name} after {time.monotonic() - began:.1f} s for {payload[:200]!r}")
        name: str = code.name
        return name
    return "OK"


def _memory_mib(process: psutil.Process) -> float:
    whole = [process, *process.children(recursive=True)]
    return sum(one.memory_info().rss for one in whole) / 2**20


def _payload(chance: random.Random, changes: Sequence[_Change], model: str, texts: dict[str, str]) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, contents in _rows(chance, texts).items():
        request.inputs.add(name=name, datatype="BYTES", shape=[len(contents), 1])
        request.raw_input_contents.append(b"".join(len(part).to_bytes(4, "little") + part for part in contents))
    if chance.random() < 0.5:
        for _ in range(chance.randint(1, 3)):
            chance.choice(changes)(chance, request)
        return bytes(request.SerializeToString())
    return spoilt(chance, bytes(request.SerializeToString()))


def _rows(chance: random.Random, texts: dict[str, str]) -> dict[str, list[bytes]]:
    """Returns the contents of each input: those of the neighbour, or what may be anything."""
    rows = chance.choice([1, 1, 1, 2, 5])
    return {
        name: [_bytes(chance.choice([text, text, _text(chance)])) for _ in range(rows)] for name, text in texts.items()
    }


def _text(chance: random.Random) -> str | bytes:
    kind = chance.randrange(6)
    if kind == 0:
        return ""
    if kind == 1:
        return chance.randbytes(chance.randint(1, 60))
    if kind == 2:
        return "a " * chance.choice([1, 50, 600, 5000])
    if kind == 3:
        return "".join(chr(chance.choice([0, 9, 0x200B, 0x202E, 0x1F600, 0xFEFF, 0x301])) for _ in range(20))
    if kind == 4:
        return "\ud7ff" * 30 + "[SEP][CLS][MASK][PAD]"
    return "".join(chr(chance.randrange(1, 0xD7FF)) for _ in range(chance.randint(1, 200)))


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _tensor(chance: random.Random, request: Any) -> Any:
    return chance.choice(request.inputs) if request.inputs else request.inputs.add()


def _shape(chance: random.Random, request: Any) -> None:
    odd = [0, 1, 2, -1, 17, 2**31, 2**62, -(2**63)]
    _tensor(chance, request).shape[:] = [chance.choice(odd) for _ in range(chance.randint(0, 4))]


def _datatype(chance: random.Random, request: Any) -> None:
    _tensor(chance, request).datatype = chance.choice(TYPES)


def _name(chance: random.Random, request: Any) -> None:
    names = ["", "TEXT", "../../etc/passwd", "x" * 5000, "input_ids"]
    if chance.random() < 0.5:
        _tensor(chance, request).name = chance.choice(names)
    else:
        request.model_name = chance.choice(names)


def _contents(chance: random.Random, request: Any) -> None:
    if request.raw_input_contents:
        at = chance.randrange(len(request.raw_input_contents))
        length = chance.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1])
        content = [b"", length.to_bytes(4, "little") + b"ab", chance.randbytes(30), b"\0" * 4]
        request.raw_input_contents[at] = chance.choice(content)


def _count(chance: random.Random, request: Any) -> None:
    if chance.random() < 0.5:
        request.raw_input_contents.append(b"\x01\0\0\0a")
    elif request.inputs:
        del request.inputs[-1]


def _parameters(chance: random.Random, request: Any) -> None:
    keys = ["timeout", "priority", "sequence_id", "sequence_start", "shared_memory_region", "headers", "x"]
    where = chance.choice([request, _tensor(chance, request)])
    value = where.parameters[chance.choice(keys)]
    if chance.random() < 0.5:
        value.int64_param = chance.choice([-1, 0, 1, 2**63 - 1])
    else:
        value.string_param = chance.choice(["", "nothing", "1"])


def _outputs(chance: random.Random, request: Any) -> None:
    for _ in range(chance.randint(1, 30)):
        output = request.outputs.add(name=chance.choice(["LABEL", "SCORE", "", "none"]))
        if chance.random() < 0.3 and output.name == "SCORE":
            output.parameters["classification"].int64_param = chance.choice([-1, 0, 3, 2**40])


def _classified(chance: random.Random, request: Any) -> None:
    """Asks for the best classes of an output of texts, which ends Triton 2.51 (docs/security.md)."""
    output = request.outputs.add(name=chance.choice(["LABEL", "ITEM_ID", "ANSWER"]))
    output.parameters["classification"].int64_param = 3


def _version(chance: random.Random, request: Any) -> None:
    request.model_version = chance.choice(["1", "2", "-1", "x", "99999999999999999999"])


def _typed(chance: random.Random, request: Any) -> None:
    tensor = _tensor(chance, request)
    tensor.contents.bytes_contents.append(b"a")
    if chance.random() < 0.5:
        tensor.contents.int_contents.append(1)
        del request.raw_input_contents[:]


_CHANGES = (_shape, _datatype, _name, _contents, _count, _parameters, _outputs, _version, _typed)


if __name__ == "__main__":
    sys.exit(main())
