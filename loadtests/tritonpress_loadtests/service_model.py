"""How one machine serves, from measured runs: the time of an execution by its batch, and how requests differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonpress_loadtests import histograms
from tritonpress_loadtests.binding import busy_shares
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.histograms import Counts
from tritonpress_loadtests.results import Results
from tritonpress_loadtests.simulator import Floats, Replica, simulate

_LEAST_SHARE = 0.02
_HEAD_SHARE = 0.1


@dataclass(frozen=True)
class ServiceModel:
    """One machine of the measured kind: a queue before the model that binds, and a constant time for all else."""

    model: str
    """The step whose instances are the busiest."""
    replica: Replica
    rest_s: float
    """What a request spends elsewhere: other steps, the server, the way."""
    latencies: Counts
    """Of the lightest stage, from which the requests' differences are drawn."""
    batches_seen: int
    """The largest batch that was measured."""

    def factors(self, count: int, seed: int) -> Floats:
        """Returns that many requests' shares in the time of their execution, 1 in the mean, drawn as measured."""
        values, times = self.latencies
        drawn = np.random.default_rng(seed).choice(values / 1e6, count, p=times / times.sum())
        # What is left of a latency without the rest is the execution's; even the quickest is a small share of the mean.
        service = np.maximum(drawn - self.rest_s, _LEAST_SHARE * self.execution_s(1))
        shares: Floats = service / service.mean()
        return shares

    def execution_s(self, batch: int) -> float:
        """Returns the mean time of an execution of that many requests."""
        return self.replica.fixed_s + self.replica.per_row_s * batch

    def latencies_s(
        self, rate_per_s: float, *, count: int, replica: Replica | None = None, seed: int = 0, **pool: Any
    ) -> Floats:
        """Returns simulated latencies of Poisson arrivals at that rate, without the first tenth (an empty queue)."""
        _, times_s = self.simulated_s(rate_per_s, count=count, replica=replica, seed=seed, **pool)
        return times_s[int(_HEAD_SHARE * count) :]

    def simulated_s(
        self, rate_per_s: float, *, count: int, replica: Replica | None = None, seed: int = 0, **pool: Any
    ) -> tuple[Floats, Floats]:
        """Returns when Poisson arrivals at that rate are due, and their latencies, NaN where they failed.

        Args:
            rate_per_s: Of all replicas.
            count: How many requests.
            replica: What each replica is; what was measured by default.
            seed: Fixes all draws.
            pool: The rest of `simulator.simulate`'s arguments.
        """
        chance = np.random.default_rng([seed, count])
        due_s = np.cumsum(chance.exponential(1 / rate_per_s, count))
        times_s = simulate(due_s, self.factors(count, seed + 1), replica or self.replica, seed=seed, **pool)
        return due_s, times_s + self.rest_s


def fit_service(runs: list[Results]) -> ServiceModel:
    """Returns the model of one machine, from all stages of runs of one repository.

    Raises:
        ScenarioError: The server's statistics say nothing of an execution, or no stage is light enough.
    """
    stages = [(stage, run["served"]) for run in runs for stage in run["stages"] if stage["latency_ms"]]
    shares: dict[str, float] = {}
    for stage, served in stages:
        for model, share in busy_shares(stage, served).items():
            shares[model] = max(shares.get(model, 0.0), share)
    if not shares:
        raise ScenarioError("the runs do not say how long executions took; run them again with this version")
    model = max(shares, key=shares.__getitem__)
    fixed_s, per_row_s, largest = _fit_execution(
        [row for stage, _ in stages for row in stage["models"] if row["model"] == model]
    )
    lightest, served = min(stages, key=lambda entry: busy_shares(*entry).get(model, np.inf))
    latencies = histograms.counts(histograms.merged([lightest["histogram"]]))
    (row,) = [row for row in lightest["models"] if row["model"] == model]
    rest_s = max(0.0, lightest["latency_ms"]["mean"] / 1e3 - row["queue_us"] / 1e6 - (fixed_s + per_row_s))
    config = served[model]
    replica = Replica(
        instances=config["instances"],
        max_batch=max(1, config["max_batch_size"]) if config["batched"] else 1,
        fixed_s=fixed_s,
        per_row_s=per_row_s,
        delay_s=config["queue_delay_us"] / 1e6,
    )
    return ServiceModel(model, replica, rest_s, latencies, largest)


def _fit_execution(rows: list[dict[str, Any]]) -> tuple[float, float, int]:
    """Returns fixed and per-row time in s, and the largest batch seen; least squares, weighted by executions."""
    pooled: dict[int, list[float]] = {}
    for row in rows:
        for size, count in row["batch_sizes"].items():
            seen = pooled.setdefault(int(size), [0.0, 0.0])
            seen[0] += count
            seen[1] += count * row["execution_ms"][size] / 1e3
    sizes = np.array(sorted(pooled), np.float64)
    weights = np.array([pooled[int(size)][0] for size in sizes])
    means: npt.NDArray[np.float64] = np.array([pooled[int(size)][1] for size in sizes]) / weights
    if len(sizes) == 1:
        # Without a second size the two parts cannot be told; that batches gain nothing is the careful reading.
        return 0.0, float(means[0] / sizes[0]), int(sizes[0])
    # Relative errors, so that batches of one count as much as large ones.
    scale = np.sqrt(weights) / means
    design = np.column_stack([np.ones_like(sizes), sizes]) * scale[:, None]
    (fixed_s, per_row_s), *_ = np.linalg.lstsq(design, means * scale, rcond=None)
    if fixed_s < 0:
        fixed_s, per_row_s = 0.0, float((weights * sizes / means).sum() / (weights * (sizes / means) ** 2).sum())
    elif per_row_s < 0:
        fixed_s, per_row_s = float((weights / means).sum() / (weights / means**2).sum()), 0.0
    return float(fixed_s), float(per_row_s), int(sizes[-1])
