"""What the client costs over bare tritonclient and over gRPC's stub, on the same requests to a model that does nothing.

    python docs/client_overhead.py                     # some 5 minutes; --rounds 2 --seconds 0.5 to try it
    python docs/client_overhead.py --shared-memory     # what `Options.shared_memory` gains, by the size of the input

All ways ask in turn in short slices. Blocking: one caller, p50 and calls a second. Async: 16 tasks of one process.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2_grpc
from tritonpress_client import AsyncRecommender, Connection, Options, Recommender, SharedMemory
from tritonpress_client.wire import add_text, infer_request
from tritonpress_server import TritonServer

OUTPUTS = ("ITEM_ID", "SCORE")
TASKS = 16
SIZES = ((1, 1_000), (4, 4_000), (16, 4_000), (32, 4_000), (32, 32_000))
"""Of a request: how many texts, and each one's bytes."""
CONFIG = """
name: "recommendation" backend: "python" max_batch_size: 16
input [{ name: "QUERY", data_type: TYPE_STRING, dims: [-1] }]
output [{ name: "ITEM_ID", data_type: TYPE_STRING, dims: [10] }, { name: "SCORE", data_type: TYPE_FP32, dims: [10] }]
dynamic_batching {} instance_group [{ count: 1, kind: KIND_CPU }]
"""
MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

ITEMS = np.array([[f"T-{number:03}".encode() for number in range(10)]], object)
SCORES = np.linspace(1, 0, 10, dtype=np.float32)[None]


class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.Tensor("ITEM_ID", ITEMS), pb_utils.Tensor("SCORE", SCORES)]
        return [pb_utils.InferenceResponse(tensors) for _ in requests]
"""


def write_model(folder: Path) -> Path:
    """Returns a repository with a model that does nothing."""
    version = folder / "recommendation" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    (version / "model.py").write_text(MODEL)
    return folder


def bare_inputs(kind: Any) -> tuple[list[Any], list[Any]]:
    """Returns a request's tensors as tritonclient's user makes them."""
    tensor = kind.InferInput("QUERY", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["red lamp"]], dtype=object))
    return [tensor], [kind.InferRequestedOutput(name) for name in OUTPUTS]


def blocking_slice(call: Callable[[], Any], seconds: float) -> np.ndarray[Any, Any]:
    """Returns the times of calls one after another, in µs."""
    times, end = [], time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        call()
        times.append(time.perf_counter() - started)
    return np.array(times) * 1e6


def blocking(url: str, rounds: int, seconds: float) -> None:
    """Prints p50 and calls a second of one caller."""
    with triton.InferenceServerClient(url) as bare, Recommender(url) as ours:

        def ask_bare() -> Any:
            inputs, outputs = bare_inputs(triton)
            result = bare.infer("recommendation", inputs, outputs=outputs, client_timeout=5.0)
            return [result.as_numpy(name) for name in OUTPUTS]

        ways = {"tritonclient": ask_bare, "tritonpress_client": lambda: ours.recommend("red lamp")}
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for name in [*ways, *(name for _ in range(rounds) for name in ways)]:
            times = blocking_slice(ways[name], seconds)
            seen[name].append((float(np.median(times)), len(times) / seconds))
    report("blocking, 1 caller", {name: found[1:] for name, found in seen.items()})


async def async_slice(call: Callable[[], Awaitable[Any]], seconds: float) -> tuple[float, float]:
    """Returns p50 in µs and calls a second of `TASKS` tasks."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def ask() -> None:
        while (started := time.perf_counter()) < end:
            await call()
            times.append(time.perf_counter() - started)

    await asyncio.gather(*(ask() for _ in range(TASKS)))
    return float(np.median(times) * 1e6), len(times) / seconds


async def in_async(url: str, rounds: int, seconds: float) -> None:
    """Prints the same of 16 tasks in one event loop, beside gRPC's stub with a request that is made once."""
    async with triton_aio.InferenceServerClient(url) as bare, AsyncRecommender(url) as ours:
        import grpc

        async with grpc.aio.insecure_channel(url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            request = infer_request("recommendation", OUTPUTS)
            add_text(request, "QUERY", [b"red lamp"])

            async def ask_bare() -> Any:
                inputs, outputs = bare_inputs(triton_aio)
                result = await bare.infer("recommendation", inputs, outputs=outputs, client_timeout=5.0)
                return [result.as_numpy(name) for name in OUTPUTS]

            ways: dict[str, Callable[[], Awaitable[Any]]] = {
                "tritonclient": ask_bare,
                "tritonpress_client": lambda: ours.recommend("red lamp"),
                "prebuilt stub": lambda: stub.ModelInfer(request, timeout=5.0),
            }
            seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for name in [*ways, *(name for _ in range(rounds) for name in ways)]:
                seen[name].append(await async_slice(ways[name], seconds))
    report(f"async, {TASKS} tasks", {name: found[1:] for name, found in seen.items()})


def in_shared_memory(url: str, rounds: int, seconds: float) -> None:
    """Prints p50 and calls a second of one caller whose inputs travel in the message, or lie in shared memory."""
    options = Options(shared_memory=SharedMemory(least_bytes=1))
    with Connection(url) as plain, Connection(url, options=options) as shared:
        for count, size in SIZES:
            texts = {"QUERY": np.array([[b"x" * size] * count], dtype=object)}
            connections = {"in the message": plain, "in shared memory": shared}
            ways = {name: functools.partial(each.infer, "recommendation", texts) for name, each in connections.items()}
            seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for name in [*ways, *(name for _ in range(rounds) for name in ways)]:
                times = blocking_slice(ways[name], seconds)
                seen[name].append((float(np.median(times)), len(times) / seconds))
            report(f"{count} × {size:,} bytes", {name: found[1:] for name, found in seen.items()})


def report(title: str, seen: dict[str, list[tuple[float, float]]]) -> None:
    """Prints medians, and the ratio to the first way round by round: its median and the middle 80 %."""
    first, *_ = seen
    print(f"{title:<22}{'p50 µs':>8}{'more µs':>12}{'calls/s':>10}{'ratio':>9}  middle 80 %  (to {first})")
    bare = np.array(seen[first])
    for name, found in seen.items():
        figures = np.array(found)
        p50, rate = np.median(figures, axis=0)
        more = np.median(figures[:, 0] - bare[:, 0])
        ratio = figures[:, 1] / bare[:, 1]
        low, high = np.percentile(ratio, [10, 90])
        print(f"  {name:<20}{p50:8.0f}{more:+12.0f}{rate:10.0f}{np.median(ratio):8.3f}×  [{low:.3f}–{high:.3f}]")


def main() -> None:
    """Measures one or the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared-memory", action="store_true", help="measure that")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a slice (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, TritonServer(write_model(Path(folder) / "repository")) as server:
        if arguments.shared_memory:
            in_shared_memory(server.grpc_url, arguments.rounds, arguments.seconds)
            return
        blocking(server.grpc_url, arguments.rounds, arguments.seconds)
        asyncio.run(in_async(server.grpc_url, arguments.rounds, arguments.seconds))


if __name__ == "__main__":
    main()
