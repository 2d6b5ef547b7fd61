"""The Universal Scalability Law: throughput of N users, X(N) = λN / (1 + σ(N − 1) + κN(N − 1)) (Gunther 1993)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_RESAMPLES = 1000
_LEAST_LOADS = 4


@dataclass(frozen=True)
class Fit:
    """λ (answers/s of one user), σ (contention) and κ (coherency), each of them 0 or more."""

    rate_per_s: float
    contention: float
    coherency: float

    def throughput(self, users: Floats) -> Floats:
        """Returns X(N) in answers a second."""
        slowed = 1 + self.contention * (users - 1) + self.coherency * users * (users - 1)
        found: Floats = self.rate_per_s * users / slowed
        return found

    @property
    def peak_users(self) -> float:
        """The number of users beyond which throughput falls; infinite without coherency."""
        return float(np.sqrt(max(0.0, 1 - self.contention) / self.coherency)) if self.coherency else float("inf")


def fit(users: Floats, throughput_per_s: Floats) -> Fit:
    """Returns the law that fits best; N / X(N) is linear in 1/λ, σ/λ and κ/λ, which are kept from being negative.

    Relative errors of the throughput are what is made small, so that one user counts as much as many.
    """
    design = np.column_stack([np.ones_like(users), users - 1, users * (users - 1)])
    target = users / throughput_per_s
    solved = _nonnegative(design / target[:, None], np.ones_like(target))
    return Fit(1 / solved[0], solved[1] / solved[0], solved[2] / solved[0])


def fit_stages(stages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the fit of closed stages with 95 % intervals by a bootstrap; None below four numbers of users.

    A resample draws each stage's windows anew, so that the intervals hold what differs from second to second.
    """
    closed = [stage for stage in stages if stage["loop"] == "closed" and stage["throughput_per_s"] > 0]
    users = np.array([stage["users"] for stage in closed], np.float64)
    if len(np.unique(users)) < _LEAST_LOADS:
        return None
    best = fit(users, np.array([stage["throughput_per_s"] for stage in closed]))
    chance = np.random.default_rng(0)
    windows = [np.array(stage["windows"]["answered_per_s"]) for stage in closed]
    drawn = [
        fit(users, np.array([max(1e-9, chance.choice(each, len(each)).mean()) for each in windows]))
        for _ in range(_RESAMPLES)
    ]
    fields = {"rate_per_s": best.rate_per_s, "contention": best.contention, "coherency": best.coherency}
    return {
        **fields,
        "peak_users": best.peak_users if np.isfinite(best.peak_users) else None,
        "interval": {
            name: np.percentile([getattr(each, name) for each in drawn], [2.5, 97.5]).tolist() for name in fields
        },
    }


def _nonnegative(design: Floats, target: Floats) -> Floats:
    """Returns the least-squares solution with no negative part and a positive first: the best of all active sets."""
    best, least = None, np.inf
    for count in (1, 2, 3):
        for rest in combinations((1, 2), count - 1):
            columns = [0, *rest]
            part, *_ = np.linalg.lstsq(design[:, columns], target, rcond=None)
            error = float(((design[:, columns] @ part - target) ** 2).sum())
            if part[0] > 0 and (part >= 0).all() and error < least:
                best, least = np.zeros(3), error
                best[columns] = part
    if best is None:
        raise ValueError("throughput must be above 0")
    return best
