"""What a flood of low priority costs those of high priority: their p99 alone and beside it, and an execution of it.

    python docs/priorities.py generator/recipes/classification.yaml [--max-batch-size 1] [--seconds 30]

Builds the recipe with two priorities into a temporary repository, and serves it. High priority: one request at a time,
at random moments. Flood: so many clients that the queue never empties.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import yaml
from tritonpress_client import Options
from tritonpress_client.connection import Connection
from tritonpress_generator import recipe as recipes
from tritonpress_generator import repository
from tritonpress_generator.build import build_recipe
from tritonpress_server import TritonServer

FLOOD, HIGH_PER_S = 48, 5.0


def main() -> None:
    """Builds, serves, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--max-batch-size", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    options = parser.parse_args()
    data = yaml.safe_load(options.recipe.read_text(encoding="utf-8"))
    data["serve"] |= {"max_batch_size": options.max_batch_size, "queue": {"priority_levels": 2}, "lengths": "exact"}
    recipe = recipes.of(data, path=options.recipe)
    with tempfile.TemporaryDirectory(prefix="tritonpress-") as folder:
        built = build_recipe(recipe, Path(folder))
        requests = [request["inputs"] for request in built.manifest["golden"]["requests"]]
        with TritonServer(folder) as server:
            measure(server.grpc_url, recipe.name, requests, options.seconds, engine(Path(folder), recipe.name))


def engine(folder: Path, name: str) -> str:
    """Returns the step whose executions count."""
    steps = repository.read_manifest(folder, name)["steps"]
    return str(steps.get("engine", steps.get("model")))


def measure(url: str, name: str, requests: list[dict[str, str]], seconds: float, step: str) -> None:
    """Prints the latencies of high priority alone and beside the flood, in ms."""
    alone = high(url, name, requests, seconds)
    stop = threading.Event()
    threads = [threading.Thread(target=flood, args=(url, name, requests, stop)) for _ in range(FLOOD)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    with Connection(url) as connection:
        (before,) = connection.statistics(step)
        beside = high(url, name, requests, seconds)
        (after,) = connection.statistics(step)
    stop.set()
    for thread in threads:
        thread.join()
    spent = after - before
    execution = sum(spent.execution_ns.values()) / spent.execution_count / 1e6
    batch = spent.inference_count / spent.execution_count
    limit = 1.2 * np.percentile(alone, 99) + execution
    print(f"high priority alone:      p50 {np.percentile(alone, 50):6.1f}  p99 {np.percentile(alone, 99):6.1f} ms")
    print(f"high priority and flood:  p50 {np.percentile(beside, 50):6.1f}  p99 {np.percentile(beside, 99):6.1f} ms")
    rate = spent.inference_count / seconds
    print(f"an execution of the flood: {execution:.1f} ms, {batch:.1f} texts; {rate:.0f} texts/s")
    print(f"p99 alone + 20 % + an execution: {limit:.1f} ms")


def high(url: str, name: str, requests: list[dict[str, str]], seconds: float) -> list[float]:
    """Returns the latencies in ms of requests at random moments, one at a time."""
    chance, latencies = random.Random(0), []
    with Connection(url, timeout_s=60, options=Options(priority=1)) as connection:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(chance.expovariate(HIGH_PER_S))
            start = time.perf_counter()
            connection.infer(name, tensors(chance.choice(requests)))
            latencies.append(1e3 * (time.perf_counter() - start))
    return latencies


def flood(url: str, name: str, requests: list[dict[str, str]], stop: threading.Event) -> None:
    """Asks at the lowest priority, on and on."""
    chance = random.Random()
    with Connection(url, timeout_s=120, options=Options(priority=2)) as connection:
        while not stop.is_set():
            connection.infer(name, tensors(chance.choice(requests)))


def tensors(request: dict[str, str]) -> dict[str, np.ndarray]:
    """Returns the request's inputs, each (1, 1)."""
    return {key: np.array([[value.encode()]], np.object_) for key, value in request.items()}


if __name__ == "__main__":
    main()
