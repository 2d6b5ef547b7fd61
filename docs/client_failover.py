"""What the loss of one of two servers costs: SIGKILL in the middle of a load, restart, back to full traffic.

    python docs/client_failover.py model_repo                  # 20 runs of 60 s, some 25 minutes
    python docs/client_failover.py model_repo --seconds 12 --repeats 1

Two embedded servers serve the repository's `recommendation`. A closed loop finds their capacity first; then requests
are sent at planned times (`--load` of the capacity), and latency counts from those. Each answer is held to what the
same text got before. At a third of the time one server is killed, at half it is started again on the same port.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tritonpress_client import AsyncRecommender, CallEnd, Options, TritonpressError
from tritonpress_server import TritonServer

TEXTS = [
    f"{adjective} {noun}"
    for adjective in ("red", "small", "old", "soft")
    for noun in ("lamp", "chair", "knife", "bowl")
]
FULL_SHARE = 0.4
WINDOW_S = 1.0


@dataclass
class Seen:
    """What happened: planned start and latency of each request, who answered when, what went wrong."""

    planned_s: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    answered_by: list[tuple[float, str]] = field(default_factory=list)
    attempts: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)

    def started(self, method: str, model: str) -> tuple[Any, Mapping[str, str]]:
        """As `tritonpress_client.Observer`."""
        return None, {}

    def ended(self, handle: Any, end: CallEnd) -> None:
        """Counts who answered."""
        self.attempts += end.attempts
        if end.error is None:
            self.answered_by.append((time.monotonic(), end.target))


async def capacity(recommender: AsyncRecommender, seconds: float) -> float:
    """Returns the requests a second of a closed loop of 16."""
    end, answered = time.monotonic() + seconds, 0

    async def ask() -> None:
        nonlocal answered
        while time.monotonic() < end:
            await recommender.recommend(TEXTS[answered % len(TEXTS)])
            answered += 1

    await asyncio.gather(*(ask() for _ in range(16)))
    return answered / seconds


async def load(
    recommender: AsyncRecommender, expected: list[Any], rate_per_s: float, seconds: float, seen: Seen
) -> None:
    """Sends requests at planned times, and waits for all of their answers."""
    start = time.monotonic()
    tasks = set()

    async def ask(number: int, planned_s: float) -> None:
        try:
            items = await recommender.recommend(TEXTS[number % len(TEXTS)])
        except TritonpressError as exc:
            seen.errors.append(str(exc))
            return
        seen.wrong += [item.item_id for item in items] != expected[number % len(TEXTS)]
        seen.planned_s.append(planned_s)
        seen.latency_s.append(time.monotonic() - planned_s)

    for number in range(int(rate_per_s * seconds)):
        planned_s = start + number / rate_per_s
        await asyncio.sleep(max(0.0, planned_s - time.monotonic()))
        task = asyncio.create_task(ask(number, planned_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


def full_traffic_s(seen: Seen, target: str, since: float) -> float | None:
    """Returns how long after `since` the server's share of a window's answers was a full one again."""
    times = np.array([when for when, _ in seen.answered_by])
    is_its = np.array([answered_by == target for _, answered_by in seen.answered_by])
    for end in np.arange(since + WINDOW_S, times.max(), 0.1):
        window = (times > end - WINDOW_S) & (times <= end)
        if window.any() and is_its[window].mean() >= FULL_SHARE:
            return float(end - since)
    return None


async def run(pair: list[TritonServer], seconds: float, share: float) -> dict[str, Any]:
    """Returns the figures of one run."""
    seen = Seen()
    urls = [server.grpc_url for server in pair]
    async with AsyncRecommender(urls, timeout_s=5.0, options=Options(observers=(seen,))) as recommender:
        expected = [[item.item_id for item in await recommender.recommend(text)] for text in TEXTS]
        rate_per_s = share * await capacity(recommender, min(5.0, seconds / 4))
        seen.attempts, seen.answered_by = 0, []
        loading = asyncio.create_task(load(recommender, expected, rate_per_s, seconds, seen))
        await asyncio.sleep(seconds / 3)
        killed = time.monotonic()
        os.kill(pair[0].pid, signal.SIGKILL)
        await asyncio.sleep(seconds / 6)
        await asyncio.to_thread(pair[0].stop)
        await asyncio.to_thread(pair[0].start)
        restarted = time.monotonic()
        await loading
    planned, latency = np.array(seen.planned_s), np.array(seen.latency_s) * 1e3
    requests = int(rate_per_s * seconds)
    during = (planned >= killed - 1) & (planned < restarted)
    return {
        "requests": requests,
        "rate/s": rate_per_s,
        "lost": len(seen.errors),
        "duplicated": len(latency) + len(seen.errors) - requests,
        "wrong": seen.wrong,
        "resent": seen.attempts - requests,
        "p99 ms before": float(np.percentile(latency[planned < killed - 1], 99)),
        "p99 ms fault": float(np.percentile(latency[during], 99)),
        "full traffic s": full_traffic_s(seen, urls[0], restarted),
    }


@contextlib.contextmanager
def served(repository: Path) -> Iterator[list[TritonServer]]:
    """Two servers of the repository's recommendation; each starts again on the port that it had."""
    with contextlib.ExitStack() as stack:
        pair = []
        for _ in range(2):
            with TritonServer(repository) as first:
                port = int(first.grpc_url.rpartition(":")[2])
            pair.append(stack.enter_context(TritonServer(repository, grpc_port=port)))
        yield pair


def main() -> int:
    """Returns 1 if a request was lost, answered twice or wrongly; prints a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--load", type=float, default=0.6, help="of the capacity of both (%(default)s)")
    arguments = parser.parse_args()
    bad = 0
    with served(arguments.repository) as pair:
        for number in range(arguments.repeats):
            figures = asyncio.run(run(pair, arguments.seconds, arguments.load))
            if not number:
                print("  ".join(figures))
            words = [f"{value:.1f}" if isinstance(value, float) else str(value) for value in figures.values()]
            print("  ".join(word.rjust(len(name)) for word, name in zip(words, figures, strict=True)), flush=True)
            bad += figures["lost"] + figures["duplicated"] + figures["wrong"]
    print(f"{arguments.repeats} runs, {bad} requests lost, duplicated or wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
