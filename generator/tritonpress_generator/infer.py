"""The one type through which every artefact that can be run is reached, and how to time it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Infer = Callable[[Mapping[str, Array]], dict[str, Array]]


def latency_ms(infer: Infer, feed: Mapping[str, Array], *, seconds: float = 1.0, calls: int = 150) -> float:
    """Returns the median wall time of one call in ms, over `seconds` or `calls` after a warm-up, what is less."""
    for _ in range(3):
        infer(feed)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (time.perf_counter() < end and len(times) < calls) or len(times) < 3:
        start = time.perf_counter()
        infer(feed)
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3)
