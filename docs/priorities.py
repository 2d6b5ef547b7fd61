"""What a flood of low priority costs those of high priority: their p99 alone and beside it, and an execution of it.

    python docs/priorities.py generator/recipes/classification.yaml [--apart] [--max-batch-size 16] [--seconds 120]

Builds the recipe with two priorities into a temporary repository, and serves it; with `--apart` as two workloads, so
that high priority has instances of its own, and no queue with the flood. High priority: one request at a time,
at random moments, alone before the flood and after it, since machines drift, and beside it. Flood: 48 requests at a
time, so that the queue never empties. Ends with 1 where p99 beside the flood is above p99 alone, 20 % and an execution
of the flood; the intervals say whether a longer run could say something else.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tritonpress_client import Options
from tritonpress_client.connection import AsyncConnection, Connection
from tritonpress_generator import recipe as recipes
from tritonpress_generator import repository
from tritonpress_generator.build import build_recipe
from tritonpress_server import TritonServer

FLOOD, HIGH_PER_S = 48, 5.0
MORE = 1.2
"""What p99 may be beside the flood, in multiples of what it is alone, and an execution."""
_BLOCK = 10
"""Requests that follow each other are drawn together, since one that is slow may have made the next one slow."""
_RESAMPLES = 2000
_LEAST_S = 4 * _BLOCK / HIGH_PER_S


def main() -> int:
    """Builds, serves, measures and prints; returns 1 where the flood costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--apart", action="store_true", help="a workload for each priority, in place of one queue")
    parser.add_argument("--max-batch-size", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each measurement (%(default)s)")
    options = parser.parse_args()
    if options.seconds < _LEAST_S:
        parser.error(f"--seconds must be {_LEAST_S:g} or more, got {options.seconds:g}")
    data = yaml.safe_load(options.recipe.read_text(encoding="utf-8"))
    data["serve"] |= {"max_batch_size": options.max_batch_size, "lengths": "exact"}
    name = urgent = data["name"]
    with tempfile.TemporaryDirectory(prefix="tritonpress-") as folder:
        if options.apart:
            urgent = f"{name}_urgent"
            _built(data | {"name": urgent}, options, folder)
        else:
            data["serve"] |= {"queue": {"priority_levels": 2}}
            # An only instance would be left idle at times (docs/operations.md).
            words = data["engine"] if isinstance(data["engine"], dict) else {data["engine"]: {}}
            instances = {"instances": max(2, len(os.sched_getaffinity(0)))}
            data["engine"] = {word: settings | instances for word, settings in words.items()}
        built = _built(data, options, folder)
        requests = [request["inputs"] for request in built["golden"]["requests"]]
        with TritonServer(folder) as server:
            step = engine(Path(folder), name)
            return measure(server.grpc_url, name, urgent, requests, options.seconds, step)


def _built(data: dict[str, Any], options: argparse.Namespace, folder: str) -> dict[str, Any]:
    return dict(build_recipe(recipes.of(data, path=options.recipe), Path(folder)).manifest)


def engine(folder: Path, name: str) -> str:
    """Returns the step whose executions count."""
    steps = repository.read_manifest(folder, name)["steps"]
    return str(steps.get("engine", steps.get("model")))


def measure(url: str, name: str, urgent: str, requests: list[dict[str, str]], seconds: float, step: str) -> int:
    """Measures high priority alone and beside the flood, and prints; returns 1 where the flood costs too much."""
    chance = random.Random(0)
    alone = high(url, urgent, requests, seconds / 2, chance)
    # A process of its own, so that its clients do not wait for ours.
    flooding = multiprocessing.get_context("spawn").Process(target=flood, args=(url, name, requests), daemon=True)
    flooding.start()
    with Connection(url, timeout_s=60) as connection:
        (before,) = connection.statistics(step)
        while connection.statistics(step)[0].success.count < before.success.count + 2 * FLOOD:
            time.sleep(0.1)
        (before,) = connection.statistics(step)
        beside = high(url, urgent, requests, seconds, random.Random(0))
        (after,) = connection.statistics(step)
        flooding.terminate()
        flooding.join()
        # Of the lowest priority: answered when all that waits has been.
        connection.infer(name, tensors(requests[0]))
    alone += high(url, urgent, requests, seconds / 2, chance)
    spent = after - before
    execution_ms = sum(spent.execution_ns.values()) / spent.execution_count / 1e6
    batch, rate = spent.inference_count / spent.execution_count, spent.inference_count / seconds
    print(f"an execution of the flood: {execution_ms:.1f} ms, {batch:.1f} texts; {rate:.0f} texts/s")
    return judged(np.array(alone), np.array(beside), execution_ms)


def judged(alone: np.ndarray, beside: np.ndarray, execution_ms: float) -> int:
    """Prints p50 and p99 with its interval at 95 %, and the bound; returns 1 where p99 beside the flood is above it.

    Args:
        alone: Latencies in ms, in their order.
        beside: The same beside the flood.
        execution_ms: How long the flood's executions take.
    """
    chance = np.random.default_rng(0)
    drawn = {"alone": resampled_p99(alone, chance), "and flood": resampled_p99(beside, chance)}
    for which, latencies in (("alone", alone), ("and flood", beside)):
        p50, p99 = np.percentile(latencies, [50, 99])
        low, most = np.percentile(drawn[which], [2.5, 97.5])
        print(f"high priority {which + ':':10} p50 {p50:6.1f}  p99 {p99:6.1f} ms [{low:.1f}–{most:.1f}]")
    bound = MORE * np.percentile(alone, 99) + execution_ms
    over = np.percentile(beside, 99) - bound
    low, most = np.percentile(drawn["and flood"] - MORE * drawn["alone"] - execution_ms, [2.5, 97.5])
    verdict = "missed" if over > 0 else "kept"
    undecided = "; a longer run could say something else" if low <= 0 < most else ""
    print(f"p99 alone + {MORE - 1:.0%} + an execution: {bound:.1f} ms: {verdict} by {abs(over):.1f} ms{undecided}")
    return int(over > 0)


def resampled_p99(latencies: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Returns p99 of so many samples like this one, drawn from it by blocks (Künsch 1989)."""
    blocks = latencies[: len(latencies) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    which = chance.integers(len(blocks), size=(_RESAMPLES, len(blocks)))
    return np.percentile(blocks[which].reshape(_RESAMPLES, -1), 99, axis=1)


def high(url: str, name: str, requests: list[dict[str, str]], seconds: float, chance: random.Random) -> list[float]:
    """Returns the latencies in ms of requests at random moments, one at a time."""
    latencies = []
    with Connection(url, timeout_s=60, options=Options(priority=1)) as connection:
        connection.infer(name, tensors(requests[0]))  # connects, which is no request's latency
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(chance.expovariate(HIGH_PER_S))
            start = time.perf_counter()
            connection.infer(name, tensors(chance.choice(requests)))
            latencies.append(1e3 * (time.perf_counter() - start))
    return latencies


def flood(url: str, name: str, requests: list[dict[str, str]]) -> None:
    """Asks at the lowest priority, so many requests at a time, on and on."""
    os.nice(19)  # its own work, which is another machine's where it counts

    async def one(connection: AsyncConnection) -> None:
        chance = random.Random()
        while True:
            await connection.infer(name, tensors(chance.choice(requests)))

    async def all_of_them() -> None:
        async with AsyncConnection(url, timeout_s=120, options=Options(priority=2)) as connection:
            await asyncio.gather(*(one(connection) for _ in range(FLOOD)))

    asyncio.run(all_of_them())


def tensors(request: dict[str, str]) -> dict[str, np.ndarray]:
    """Returns the request's inputs, each (1, 1)."""
    return {key: np.array([[value.encode()]], np.object_) for key, value in request.items()}


if __name__ == "__main__":
    sys.exit(main())
