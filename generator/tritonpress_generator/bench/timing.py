"""Slices of work by the clock: calls one after the other, from several callers, and at a planned rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ask = Callable[[int, int], object]
"""Does the work of one request; takes the caller's number and the request's."""


def rate(call: Callable[[], object], seconds: float) -> float:
    """Returns calls per second over about `seconds`."""
    start = time.perf_counter()
    count = 0
    while True:
        call()
        count += 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return count / elapsed


def closed_loop(ask: Ask, callers: int, seconds: float) -> tuple[float, NDArray[np.float64]]:
    """Returns requests per second and the ms of each, of `callers` threads that ask as soon as they are answered.

    Each of them asks once at least.
    """
    times: list[list[float]] = [[] for _ in range(callers)]
    start = time.perf_counter()

    def caller(number: int) -> None:
        turn = number
        while not times[number] or time.perf_counter() < start + seconds:
            began = time.perf_counter()
            ask(number, turn)
            times[number].append(time.perf_counter() - began)
            turn += callers

    _run(caller, callers)
    latencies = np.concatenate([np.array(part) for part in times]) * 1e3
    return len(latencies) / (time.perf_counter() - start), latencies


def open_loop(ask: Ask, per_s: float, callers: int, seconds: float, *, seed: int) -> NDArray[np.float64]:
    """Returns the ms of each request from when it was due; they are due at random, `per_s` a second (Poisson).

    A caller that is late sends at once, so that no wait is left out (coordinated omission).
    """
    gaps = np.random.default_rng(seed).exponential(1 / per_s, max(1, int(per_s * seconds)))
    due = time.perf_counter() + 0.05 + np.cumsum(gaps)
    latencies = np.zeros(len(due))
    turn = iter(range(len(due)))
    lock = threading.Lock()

    def caller(number: int) -> None:
        while True:
            with lock:
                request = next(turn, None)
            if request is None:
                return
            time.sleep(max(0.0, due[request] - time.perf_counter()))
            ask(number, request)
            latencies[request] = (time.perf_counter() - due[request]) * 1e3

    _run(caller, callers)
    return latencies


def spread(values: Any, *, unit: str = "×", digits: int = 2) -> str:
    """Returns the median and the range of the middle 80 %."""
    low, middle, high = np.percentile(values, [10, 50, 90])
    return f"{middle:.{digits}f}{unit} [{low:.{digits}f}–{high:.{digits}f}]"


def _run(target: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=target, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
