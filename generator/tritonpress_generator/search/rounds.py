"""How fast engines are that ran in turn, so that what disturbs one disturbs all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rounds:
    """How fast an engine was in each round, `(rounds,)`; rounds of engines that ran in turn are paired."""

    texts_per_s: NDArray[np.float64]
    """With all its instances at work, and as many texts at hand as an execution may have."""
    latency_ms: NDArray[np.float64]
    """Of a text alone, on all cores; the mean over the sample texts."""

    def medians(self) -> tuple[float, float]:
        """Returns the median of each."""
        return float(np.median(self.texts_per_s)), float(np.median(self.latency_ms))

    def to(self, other: Rounds) -> Times:
        """Returns how fast it was relative to another one."""
        return Times(
            float(np.median(self.texts_per_s / other.texts_per_s)), float(np.median(self.latency_ms / other.latency_ms))
        )


@dataclass(frozen=True)
class Times:
    """How fast an engine is relative to another one that ran in turn with it: medians over the rounds."""

    throughput: float
    """More is better."""
    latency: float
    """Less is better."""
