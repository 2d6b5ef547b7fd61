"""The client's balancing (fewest requests in flight) beside gRPC's own `round_robin`, on two embedded servers in turn.

    python docs/balancing.py [--rounds 6 --seconds 3]

The model waits 20 ms in place of computing, one request at a time; the second server takes as long as the first, or
four times as long. Requests are sent at random moments (Poisson), and latency counts from those.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from client_overhead import OUTPUTS
from tritonclient.grpc import service_pb2_grpc
from tritonpress_client import AsyncRecommender
from tritonpress_client.wire import add_text, infer_request
from tritonpress_server import Settings, TritonServer
from two_servers import WAIT_S, write_waiting

CASES = {"both alike, 70 requests/s": (1.0, 70.0), "the second takes 4 times as long, 22 requests/s": (4.0, 22.0)}
"""How many times as long the second server takes, and a rate whose half it can still answer."""
ROUND_ROBIN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


async def slice_ms(call: Callable[[], Awaitable[Any]], rate_per_s: float, seconds: float, chance: random.Random) -> Any:
    """Returns the latencies of Poisson arrivals, in ms."""
    times_ms: list[float] = []

    async def ask(due_s: float) -> None:
        await call()
        times_ms.append(1e3 * (time.monotonic() - due_s))

    due_s, end_s, tasks = time.monotonic(), time.monotonic() + seconds, []
    while (due_s := due_s + chance.expovariate(rate_per_s)) < end_s:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        tasks.append(asyncio.create_task(ask(due_s)))
    await asyncio.gather(*tasks)
    return np.array(times_ms)


async def compared(urls: list[str], rate_per_s: float, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the latencies of each way, all rounds together, in ms."""
    request = infer_request("recommendation", OUTPUTS)
    add_text(request, "QUERY", [b"red lamp"])
    target, service_config = f"ipv4:{','.join(urls)}", ("grpc.service_config", ROUND_ROBIN)
    async with (
        AsyncRecommender(urls, timeout_s=30) as ours,
        grpc.aio.insecure_channel(target, options=[service_config]) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "round_robin": lambda: stub.ModelInfer(request, timeout=30.0),
            "fewest in flight": lambda: ours.recommend("red lamp"),
        }
        seen: dict[str, list[Any]] = {name: [] for name in ways}
        for number in range(options.rounds + 1):
            for name, call in ways.items():
                times_ms = await slice_ms(call, rate_per_s, options.seconds, random.Random(number))
                seen[name] += [times_ms] if number else []
    return {name: np.concatenate(found) for name, found in seen.items()}


def main() -> None:
    """Prints p50, p90 and p99 of both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a slice (%(default)s)")
    options = parser.parse_args()
    for what, (slower, rate_per_s) in CASES.items():
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            urls = []
            for name, wait_s in (("first", WAIT_S), ("second", slower * WAIT_S)):
                repository = write_waiting(Path(folder) / name, wait_s)
                server = TritonServer(repository, models=["recommendation"], settings=Settings(drain_s=0))
                urls.append(stack.enter_context(server).grpc_url)
            print(f"{what}:")
            for name, times_ms in asyncio.run(compared(urls, rate_per_s, options)).items():
                p50, p90, p99 = np.percentile(times_ms, [50, 90, 99])
                print(f"  {name:<18}p50 {p50:7.1f}  p90 {p90:7.1f}  p99 {p99:7.1f} ms of {len(times_ms)}", flush=True)


if __name__ == "__main__":
    main()
