"""What a second server gives: the throughput of two embedded servers over that of one, each on cores of its own.

    python docs/two_servers.py model_repo                 # some 3 minutes, on a machine that does nothing else
    python docs/two_servers.py --rounds 2 --seconds 2     # a model that waits in place of computing: it needs no cores

Two servers serve the repository's `recommendation`; closed loops of 16 ask one and both in turn, in slices. Each
server has a part of the cores as large as the other's, and the client one that is left over, if there is one: the
command says which. Where the client shares the servers' cores, that is in the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from client_failover import capacity
from client_overhead import CONFIG, MODEL
from tritonpress_client import AsyncRecommender
from tritonpress_server import TritonServer

WAIT_S = 0.02


def write_waiting(folder: Path, wait_s: float = WAIT_S) -> Path:
    """Returns a repository with a model that takes `wait_s` for each of its executions, one request each."""
    version = folder / "recommendation" / "1"
    version.mkdir(parents=True)
    config = CONFIG.replace("max_batch_size: 16", "max_batch_size: 1")
    (version.parent / "config.pbtxt").write_text(config, encoding="utf-8")
    wait = f"        time.sleep({wait_s} * len(requests))\n        tensors = "
    model = "import time\n" + MODEL.replace("        tensors = ", wait)
    (version / "model.py").write_text(model, encoding="utf-8")
    return folder


def shares(cores: list[int]) -> tuple[list[set[int]], set[int]]:
    """Returns the cores of each server, and those of the client; all have the same ones where there are not enough."""
    each = (len(cores) - 1) // 2 or len(cores) // 2
    if not each:
        return [set(cores), set(cores)], set(cores)
    left = set(cores[2 * each :])
    return [set(cores[:each]), set(cores[each : 2 * each])], left or set(cores)


@contextlib.contextmanager
def served(repository: Path, pinned: list[set[int]]) -> Iterator[list[str]]:
    """Serves the repository once on each set of cores; gives the addresses."""
    with contextlib.ExitStack() as stack:
        urls = []
        for own in pinned:
            # What a process starts runs where it may run itself.
            os.sched_setaffinity(0, own)
            urls.append(stack.enter_context(TritonServer(repository, models=["recommendation"])).grpc_url)
        yield urls


async def measured(urls: list[str], rounds: int, seconds: float) -> list[tuple[float, float]]:
    """Returns the requests a second of the first server alone, and of both, round by round."""
    async with AsyncRecommender(urls[:1]) as one, AsyncRecommender(urls) as both:
        for recommender in (one, both):
            await capacity(recommender, min(1.0, seconds))
        return [(await capacity(one, seconds), await capacity(both, seconds)) for _ in range(rounds)]


def main() -> None:
    """Prints both, and the ratio: its median, and the middle 80 % of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a slice (%(default)s)")
    arguments = parser.parse_args()
    pinned, client = shares(sorted(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        repository = arguments.repository or write_waiting(Path(folder))
        with served(repository, pinned) as urls:
            os.sched_setaffinity(0, client)
            print(f"servers on cores {pinned[0]} and {pinned[1]}, the client on {client}")
            found = np.array(asyncio.run(measured(urls, arguments.rounds, arguments.seconds)))
    ratio = found[:, 1] / found[:, 0]
    low, high = np.percentile(ratio, [10, 90])
    one, both = np.median(found, axis=0)
    print(f"one {one:.1f}/s  both {both:.1f}/s  ratio {np.median(ratio):.2f}×  [{low:.2f}–{high:.2f}]")


if __name__ == "__main__":
    main()
