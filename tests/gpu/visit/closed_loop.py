"""Load of a closed loop: so many requests are in flight at any time; a new one follows each answer.

    python -m visit.closed_loop HOST:PORT MODEL REQUESTS.json --in-flight 64 --seconds 5

REQUESTS.json is a list of requests by input: a text, or rows of token ids. Several processes ask, since one does not
ask fast enough. They begin together, when all of them have reached the server, and the figures are of what was answered
in the same seconds by all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

_PROCESSES = 8
_WARM_UP_S = 1.0
_TIMEOUT_S = 30.0


class LoadError(Exception):
    """A process that asks ended, or got an error for an answer; one line has its last words."""


def load(url: str, model: str, requests: Path, *, in_flight: int, seconds: float) -> dict[str, Any]:
    """Returns requests/s and the latencies in ms with `in_flight` requests at a time.

    Raises:
        LoadError: A request is refused, or nothing was answered.
    """
    processes = min(in_flight, _PROCESSES)
    command = [sys.executable, "-m", "visit.closed_loop", url, model, str(requests), "--seconds", str(seconds)]
    shares = [in_flight // processes + (number < in_flight % processes) for number in range(processes)]
    askers = [
        subprocess.Popen(
            [*command, "--in-flight", str(share), "--first", str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number, share in enumerate(shares)
    ]  # fmt: skip
    _start_together(askers)
    latencies: list[float] = []
    errors: list[str] = []
    for asker in askers:
        try:
            output, said = asker.communicate(timeout=_WARM_UP_S + seconds + _TIMEOUT_S)
        except subprocess.TimeoutExpired:
            asker.kill()
            output, said = asker.communicate()
            said += "did not end in time"
        if asker.returncode == 0:
            latencies += json.loads(output)
        else:
            errors.append(" ".join(said.split())[-300:])
    if errors or not latencies:
        raise LoadError(f"{len(errors)} of {processes} processes failed ({errors[0] if errors else 'no answers'})")
    p50, p99 = np.percentile(latencies, [50, 99])
    per_s = len(latencies) / seconds
    return {"in_flight": in_flight, "requests_per_s": per_s, "p50_ms": float(p50), "p99_ms": float(p99)}


def _start_together(askers: Sequence[subprocess.Popen[str]]) -> None:
    """Tells the askers from when on answers count, as soon as each is ready or has ended."""
    for asker in askers:
        if asker.stdout is not None:
            asker.stdout.readline()
    start_at = time.time() + _WARM_UP_S
    for asker in askers:
        # One that has ended is told of by its status.
        with contextlib.suppress(BrokenPipeError):
            print(start_at, file=asker.stdin, flush=True)


def inputs(request: dict[str, Any]) -> list[triton.InferInput]:
    """Returns a request as the client sends it: texts BYTES `(1, 1)`, ids INT32 `(batch, seq)`."""
    found = []
    for name, value in request.items():
        text = isinstance(value, str)
        array = np.array([[value.encode()]], np.object_) if text else np.array(value, np.int32)
        tensor = triton.InferInput(name, list(array.shape), "BYTES" if text else "INT32")
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


async def ask(url: str, model: str, requests: list[Any], options: argparse.Namespace) -> list[float]:
    """Returns the ms of each request that was answered in the `seconds` after the moment that stdin says."""
    latencies: list[float] = []
    # Each begins elsewhere, so that they do not ask the same at the same time.
    order = itertools.count(options.first * 7919)
    async with triton_aio.InferenceServerClient(url) as client:
        await client.is_server_live(client_timeout=_TIMEOUT_S)
        print("ready", flush=True)
        start_at = float(sys.stdin.readline())
        end = start_at + options.seconds

        async def user() -> None:
            # One request at least: a refusal is seen by whoever comes late, too.
            while True:
                request = requests[next(order) % len(requests)]
                start = time.perf_counter()
                await client.infer(model, request, client_timeout=_TIMEOUT_S)
                now = time.time()
                if start_at <= now <= end:
                    latencies.append((time.perf_counter() - start) * 1e3)
                if now >= end:
                    return

        await asyncio.gather(*(user() for _ in range(options.in_flight)))
    return latencies


def main() -> None:
    """Asks as one of the processes, or has them ask."""
    parser = argparse.ArgumentParser(description="Load of a closed loop.")
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("requests", type=Path)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first is None:
        settings = {"in_flight": options.in_flight, "seconds": options.seconds}
        print(json.dumps(load(options.url, options.model, options.requests, **settings)))
        return
    requests = [inputs(request) for request in json.loads(options.requests.read_text(encoding="utf-8"))]
    print(json.dumps(asyncio.run(ask(options.url, options.model, requests, options))))


if __name__ == "__main__":
    main()
