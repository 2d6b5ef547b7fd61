"""How one machine serves, from measured runs: the time of an execution by its batch, and how requests differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonpress_loadtests.binding import busy_shares
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.own_times import OwnTimes, own_times
from tritonpress_loadtests.planned_runs import served_beside_the_load
from tritonpress_loadtests.results import Results, asked_model
from tritonpress_loadtests.simulator import Floats, Replica, simulate_queues

_LEAST_CORES = 0.02  # left for executions where all else asks for the whole machine
_HEAD_SHARE = 0.1
_REWEIGHTED = 5


@dataclass(frozen=True)
class Station:
    """What requests of one model wait for: a queue before its step that binds, and a constant time for all else."""

    asked: str
    """The model that is asked."""
    share: float
    """Of all requests, those that ask it."""
    step: str
    """Its step whose instances are the busiest."""
    replica: Replica
    rest_s: float
    """What a request spends elsewhere: other steps, the server, the way."""
    own: OwnTimes
    """What requests take of an execution by themselves, from which their differences are drawn."""
    batches_seen: int
    """The largest batch that was measured."""
    cores: float = math.inf
    """Of the machine; infinite where it is not known how busy they were."""
    elsewhere_s: float = 0.0
    """Of a core, what a request of the mix takes beside these executions: all else that the machine computes."""

    def factors(self, count: int, seed: int) -> Floats:
        """Returns that many requests' shares in the time of their execution, 1 in the mean, drawn as measured."""
        return self.own.draw(count, seed) / self.own.mean_s

    def execution_s(self, batch: int) -> float:
        """Returns the mean time of an execution of that many requests."""
        return self.replica.fixed_s + self.replica.per_row_s * batch

    def most_per_s(self, replica: Replica) -> float:
        """Returns the rate of all requests of the mix at which the instances of `replica` are busy all of the time."""
        whole_s = replica.fixed_s + replica.per_row_s * replica.max_batch
        alone = replica.instances * replica.max_batch / whole_s / self.share
        low, high = 0.0, alone
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            slower = max(self.crowded(replica, middle).slowdown, default=1.0)
            low, high = (middle, high) if middle * slower <= alone else (low, middle)
        return high

    def crowded(self, replica: Replica, rate_per_s: float) -> Replica:
        """Returns `replica` with what more instances than were measured cost where they share the machine's cores.

        An instance that executes takes a core of those that all else leaves. Where more are asked for, each takes
        longer by as much (processor sharing); what the measured instances had of that is in their times already.

        Args:
            replica: What one machine has.
            rate_per_s: Of all requests that it gets.
        """
        if replica.slowdown or replica.instances <= self.replica.instances or math.isinf(self.cores):
            return replica

        left = max(self.cores - rate_per_s * self.elsewhere_s, _LEAST_CORES)
        slower = [max(1.0, busy / left) for busy in range(1, replica.instances + 1)]
        known = [slower[min(place, self.replica.instances - 1)] for place in range(replica.instances)]
        return replace(replica, slowdown=tuple(now / then for now, then in zip(slower, known, strict=True)))


Change = Callable[[Station], Replica]
"""What a station's replica is instead of what was measured."""


def as_measured(station: Station) -> Replica:
    """Returns a station's replica as it was measured."""
    return station.replica


@dataclass(frozen=True)
class ServiceModel:
    """One machine of the measured kind: a station for each model that is asked.

    They share the machine's cores, and how much they slow each other down is in the times of their executions, which
    were measured under the same mix; more instances than were measured slow each other down by `Station.crowded`.
    """

    stations: tuple[Station, ...]
    """The one that binds first."""

    @property
    def binding(self) -> Station:
        """The station that is the first to be busy all of the time."""
        return self.stations[0]

    def most_per_s(self, change: Change = as_measured) -> float:
        """Returns the rate at which the first station is busy all of the time, in requests/s of the mix."""
        return min(station.most_per_s(change(station)) for station in self.stations)

    def latencies_s(
        self, rate_per_s: float, *, count: int, change: Change = as_measured, seed: int = 0, **pool: Any
    ) -> Floats:
        """Returns simulated latencies of Poisson arrivals at that rate, without the first tenth (an empty queue)."""
        _, times_s = self.simulated_s(rate_per_s, count=count, change=change, seed=seed, **pool)
        return times_s[int(_HEAD_SHARE * count) :]

    def simulated_s(
        self, rate_per_s: float, *, count: int, change: Change = as_measured, seed: int = 0, **pool: Any
    ) -> tuple[Floats, Floats]:
        """Returns when Poisson arrivals at that rate are due, and their latencies, NaN where they failed.

        Args:
            rate_per_s: Of all replicas and models.
            count: How many requests.
            change: What each station's replica is; what was measured by default.
            seed: Fixes all draws.
            pool: The rest of `simulator.simulate`'s arguments.
        """
        found = list(self._simulated_s(rate_per_s, count, change, seed, **pool))
        moments = np.concatenate([due_s for due_s, _, _ in found])
        order = np.argsort(moments, kind="stable")
        return moments[order], np.concatenate([times_s for _, times_s, _ in found])[order]

    def queue_s(self, rate_per_s: float, *, count: int) -> float:
        """Returns the mean time in a queue at that rate, in s, of the station where it is the longest."""
        found = self._simulated_s(rate_per_s, count, as_measured, 0)
        return max(float(np.nanmean(waits_s[int(_HEAD_SHARE * len(waits_s)) :])) for _, _, waits_s in found)

    def _simulated_s(
        self, rate_per_s: float, count: int, change: Change, seed: int, **pool: Any
    ) -> Iterator[tuple[Floats, Floats, Floats]]:
        """Yields of each station when its requests are due, their latencies, and what of these they waited."""
        for place, station in enumerate(self.stations):
            # Those that ask one model of a Poisson process are a Poisson process too.
            own = max(1, round(count * station.share))
            chance = np.random.default_rng([seed, own, place])
            moments = np.cumsum(chance.exponential(1 / (rate_per_s * station.share), own))
            factors = station.factors(own, seed + 1 + place)
            replica = station.crowded(change(station), rate_per_s / pool.get("replicas", 1))
            times_s, waits_s = simulate_queues(moments, factors, replica, seed=seed, **pool)
            yield moments, times_s + station.rest_s, waits_s


def fit_service(runs: list[Results]) -> ServiceModel:
    """Returns the model of one machine, from all stages of runs of one repository and one mix.

    Runs may differ in the number of instances; what the first of them had is what is planned with.

    Raises:
        ScenarioError: The server's statistics say nothing of an execution.
    """
    requests = runs[0]["scenario"]["requests"]
    total = sum(request["weight"] for request in requests)
    asked = [request["model"] for request in requests]
    found = [_fit_station(runs, request, asked) for request in requests]
    stations = [
        replace(station, share=request["weight"] / total) for (station, _), request in zip(found, requests, strict=True)
    ]
    busy = [share for _, share in found]
    order = sorted(range(len(stations)), key=lambda place: -busy[place])
    return ServiceModel(tuple(stations[place] for place in order))


def _fit_station(runs: list[Results], request: dict[str, Any], models: list[str]) -> tuple[Station, float]:
    """Returns the station of one model, and the largest share of a stage's time in which its instances were busy."""
    asked = request["model"]
    stages = [
        (stage, run["served"]) for run in runs for stage in run["stages"] if stage["by_model"][asked]["latency_ms"]
    ]
    shares: dict[str, float] = {}
    for stage, served in stages:
        for model, share in busy_shares(stage, served).items():
            if asked_model({"model": model}, models) == asked:
                shares[model] = max(shares.get(model, 0.0), share)
    if not any(shares.values()):
        raise ScenarioError(
            f"the runs do not say how long executions of {asked} took; run them again with this version"
        )
    step = max(shares, key=shares.__getitem__)
    fixed_s, per_row_s, largest = _fit_execution(
        [row for stage, _ in stages for row in stage["models"] if row["model"] == step]
    )
    stages = [entry for entry in stages if busy_shares(*entry).get(step)]
    stages.sort(key=lambda entry: busy_shares(*entry)[step])
    config = runs[0]["served"][step]
    rest_s = _rest_s(step, asked, stages[0][0])
    max_batch = max(1, config["max_batch_size"]) if config["batched"] else 1
    # An execution that is full waits for nobody.
    delay_s = config["queue_delay_us"] / 1e6 if max_batch > 1 else 0.0
    own = own_times(asked, [stage for stage, _ in stages], request["words_up_to"], rest_s + delay_s)
    replica = Replica(
        instances=config["instances"],
        max_batch=max_batch,
        fixed_s=own.longer * fixed_s,
        per_row_s=own.longer * per_row_s,
        delay_s=delay_s,
    )
    return Station(asked, 1.0, step, replica, rest_s, own, largest, *_cores(runs, step)), shares[step]


def _rest_s(step: str, asked: str, stage: dict[str, Any]) -> float:
    """Returns the mean of what requests of a stage spend outside of the step's queue and executions, in s."""
    (row,) = [row for row in stage["models"] if row["model"] == step]
    requests = [(int(size) * count, row["execution_ms"][size]) for size, count in row["batch_sizes"].items()]
    execution_ms = sum(count * each_ms for count, each_ms in requests) / sum(count for count, _ in requests)
    mean_ms = stage["by_model"][asked]["whole_mean_ms"]
    return max(0.0, float(mean_ms - row["queue_us"] / 1e3 - execution_ms) / 1e3)


def _cores(runs: list[Results], step: str) -> tuple[float, float]:
    """Returns the machine's cores, and what a request takes of one beside the step's executions, over all stages.

    Both are unknown where the server runs on another machine than the load.
    """
    if not all(map(served_beside_the_load, runs)):
        return math.inf, 0.0
    beside_s = requests = 0.0
    for run in runs:
        for stage in run["stages"]:
            busy = busy_shares(stage, run["served"]).get(step, 0.0) * run["served"][step]["instances"]
            used = stage["server"]["machine_cpu_share"] * run["machine"]["cores"]
            beside_s += max(0.0, used - busy) * stage["duration_s"]
            requests += stage["offered_per_s"] * stage["duration_s"]
    return float(runs[0]["machine"]["cores"]), beside_s / max(requests, 1.0)


def _fit_execution(rows: list[dict[str, Any]]) -> tuple[float, float, int]:
    """Returns fixed and per-row time in s, and the largest batch seen; least squares, weighted iteratively."""
    pooled: dict[int, list[float]] = {}
    for row in rows:
        for size, count in [(size, count) for size, count in row["batch_sizes"].items() if count]:
            seen = pooled.setdefault(int(size), [0.0, 0.0])
            seen[0] += count
            seen[1] += count * row["execution_ms"][size] / 1e3
    sizes = np.array(sorted(pooled), np.float64)
    counts = np.array([pooled[int(size)][0] for size in sizes])
    means: npt.NDArray[np.float64] = np.array([pooled[int(size)][1] for size in sizes]) / counts
    if len(sizes) == 1:
        # Without a second size the two parts cannot be told; that batches gain nothing is the careful reading.
        return 0.0, float(means[0] / sizes[0]), int(sizes[0])
    total, executions, rows_in_all = float(counts @ means), float(counts.sum()), float(counts @ sizes)
    fixed_s = per_row_s = 0.0
    expected = sizes
    for _ in range(_REWEIGHTED):
        # The variance grows with the time that is expected; by the measured, what is low by chance would weigh more.
        scale = np.sqrt(counts / expected)
        design = np.column_stack([np.ones_like(sizes), sizes]) * scale[:, None]
        fixed_s, per_row_s = np.linalg.lstsq(design, means * scale, rcond=None)[0].tolist()
        if fixed_s < 0:
            fixed_s, per_row_s = 0.0, total / rows_in_all
        elif per_row_s < 0:
            fixed_s, per_row_s = total / executions, 0.0
        expected = fixed_s + per_row_s * sizes
    return fixed_s, per_row_s, int(sizes[-1])
