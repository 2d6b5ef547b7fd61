"""What must be served, and within which limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Demand:
    """What must be served."""

    peak_per_s: float
    p99_ms: float
    quantile: float = 0.99
    """Of the limit: 0.999 for a limit on p99.9."""
    growth: float = 1.0
    """The peak is multiplied by it."""
    survive: Literal["nothing", "machine", "zone"] = "machine"
    """What may be lost at the peak with the limit still kept."""
    zones: int = 3
    policy: str = "two_choices"
    """Of the balancer, see `simulator.POLICIES`."""

    @property
    def rate_per_s(self) -> float:
        """The peak after growth."""
        return self.peak_per_s * self.growth


def quantile_ms(times_s: Any, demand: Demand) -> float:
    """Returns the limit's percentile in ms; a request that failed took for ever."""
    failed = np.isnan(times_s)
    return 1e3 * float(np.quantile(np.where(failed, np.inf, times_s), demand.quantile, method="higher"))
