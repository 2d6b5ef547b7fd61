"""From measured runs and a demand to machines: what one serves within the limit, and how many of them are needed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tritonpress_loadtests.demand import Demand, quantile_ms
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.outages import during_outages
from tritonpress_loadtests.planned_runs import served_beside_the_load
from tritonpress_loadtests.pool import BEYOND, fewest, machines_needed
from tritonpress_loadtests.results import Results
from tritonpress_loadtests.service_model import Change, ServiceModel, Station, as_measured, fit_service
from tritonpress_loadtests.simulator import Replica
from tritonpress_loadtests.usl import fit_stages

_TRIAL_REQUESTS = 200_000
_CURVE_POINTS = 22
_LEAST_SHARE = 1e-3  # of what a machine serves at most: a limit that is missed there is missed at any rate
_NEAR = 2  # times the limit
_WORST_ERROR = 0.35
_SLOWEST = 2
"""Requests that must have taken longer by themselves than the limit's percentile."""
_NO_STAGE = (
    "no open stage of poisson arrivals is there to hold the simulation to, or its generator was the bottleneck; run"
    " stages such as {rate_per_s: 100, duration_s: 30} at low, middle and high rates"
)
_UNKNOWN = 0.1
"""Of the requests beyond the limit's percentile, those that may have failed, or may have lengths that were never seen.

One that failed has no latency: what a scenario lets fail (1 % by default) may be all that was slow, so that a
percentile of the others says nothing. Of p99 this leaves 0.1 %, as `tritonpress tune` does.
"""


def make_plan(runs: list[Results], demand: Demand) -> dict[str, Any]:
    """Returns the plan, as `plan.json` holds it.

    service      of one machine, of the model whose step binds: asked, share, model (the step), instances, max_batch,
                 fixed_ms, per_row_ms, rest_ms, elsewhere_core_ms (of a core, what a request takes beside its
                 execution; null if unknown), batches_seen; `others`: the same of the other models that are asked
    checks[]     each open stage against the simulation: rate_per_s, measured_ms, simulated_ms, error
    capacity     of one machine: rate_per_s at the limit, and queue_us there (the mean of the model whose queue is the
                 longest); delay_us, what of a queue a request waits that comes alone: a batcher's delay, the longest;
                 knee_per_s, where most is served for its mean latency (Kleinrock's power); saturation_per_s, where its
                 instances are busy all of the time
    curve[]      {rate_per_s, p99_ms}: one machine by simulation, up to beyond its capacity
    machines     {at_limit, survives, p99_ms, p99_ms_after_loss, peak_per_s, headroom, headroom_ends_at}: headroom is by
                 how much the peak may grow while all are there, until they miss the limit ("limit") or each serves
                 more than was measured ("measured")
    outages[]    see `outages.during_outages`
    what_if[]    {change, machines}
    usl          see `usl.fit_stages`

    Raises:
        ScenarioError: The limit is below what one request takes alone, or the runs do not carry the plan.
    """
    runs = _sound(runs)
    model = fit_service(runs)
    _check_draws(model, demand)
    _check_limit(model, demand)
    checks = _checks(runs, model, demand)
    stages = [stage for run in runs for stage in run["stages"]]
    highest = max(stage["offered_per_s"] for stage in stages if _is_answered(stage, demand))
    capacity = machine_capacity(model, demand)
    if capacity > BEYOND * highest:
        failures = _failures([stage for stage in stages if stage["offered_per_s"] > highest], demand)
        raise ScenarioError(
            f"the simulation puts a machine's limit at {capacity:.0f}/s, but no stage was above {highest:.0f}/s"
            f"{f' that counts ({failures})' if failures else ''};"
            f" run an open stage at {0.85 * capacity:.0f}/s and one at {capacity:.0f}/s, and plan with these runs"
        )
    machines = machines_needed(model, demand, capacity, highest)
    return {
        "schema": "tritonpress-plan/1",
        "demand": {**demand.__dict__, "rate_per_s": demand.rate_per_s},
        "service": {
            **_station(model.binding),
            "others": [_station(station) for station in model.stations[1:]],
        },
        "checks": checks,
        "measured_up_to_per_s": highest,
        "capacity": {
            "rate_per_s": capacity,
            "queue_us": 1e6 * model.queue_s(capacity, count=_TRIAL_REQUESTS),
            "delay_us": _delay_us(runs[0]),
            "knee_per_s": _knee_per_s(model),
            "saturation_per_s": model.most_per_s(),
        },
        "curve": _curve(model, demand, capacity),
        "machines": machines,
        "outages": during_outages(model, demand, machines["survives"]),
        "what_if": _what_if(model, demand, highest),
        "usl": fit_stages(stages),
        "repository_sha256": runs[0]["repository_sha256"],
        "machine": runs[0]["machine"] if served_beside_the_load(runs[0]) else None,
    }


def _station(station: Station) -> dict[str, Any]:
    return {
        "asked": station.asked,
        "share": station.share,
        "model": station.step,
        **{key: getattr(station.replica, key) for key in ("instances", "max_batch")},
        "fixed_ms": 1e3 * station.replica.fixed_s,
        "per_row_ms": 1e3 * station.replica.per_row_s,
        "rest_ms": 1e3 * station.rest_s,
        "elsewhere_core_ms": None if math.isinf(station.cores) else 1e3 * station.elsewhere_s,
        "batches_seen": station.batches_seen,
    }


def machine_capacity(model: ServiceModel, demand: Demand, change: Change = as_measured) -> float:
    """Returns the highest rate at which one machine keeps the limit, to 1 %, by simulation; 0 if none does."""
    most = model.most_per_s(change)
    low, high = 0.0, most
    while high - low > 0.01 * high and high > _LEAST_SHARE * most:
        middle = (low + high) / 2
        latency = quantile_ms(model.latencies_s(middle, count=_TRIAL_REQUESTS, change=change), demand)
        low, high = (middle, high) if latency <= demand.p99_ms else (low, middle)
    return low


def _sound(runs: list[Results]) -> list[Results]:
    """Returns the runs without the stages whose generator was the bottleneck: these are of the generator."""
    sound = [
        {**run, "stages": [stage for stage in run["stages"] if not stage["generator"]["bottleneck"]]} for run in runs
    ]
    if not any(run["stages"] for run in sound):
        raise ScenarioError(_NO_STAGE)
    return [run for run in sound if run["stages"]]


def _unknown_share(demand: Demand) -> float:
    """Returns the share of requests of which nothing may be known."""
    return _UNKNOWN * (1 - demand.quantile)


def _is_poisson(stage: dict[str, Any]) -> bool:
    return bool(stage["loop"] == "open" and stage["arrivals"] == "poisson")


def _is_answered(stage: dict[str, Any], demand: Demand) -> bool:
    """Says whether the limit's percentile of a stage is that of all its requests, but for so few that failed."""
    return stage["latency_ms"] is not None and stage["error_rate"] <= _unknown_share(demand)


def _failures(stages: list[dict[str, Any]], demand: Demand) -> str:
    """Returns of which stages too many requests failed, in a few words; empty if of none."""
    found = [
        f"{100 * stage['error_rate']:.3g}% at {stage['offered_per_s']:.0f}/s"
        for stage in stages
        if stage["error_rate"] > _unknown_share(demand)
    ]
    most = f"{100 * _unknown_share(demand):.3g}%"
    return f"of the requests {', '.join(found)} failed, and the most for this percentile is {most}" if found else ""


def _check_draws(model: ServiceModel, demand: Demand) -> None:
    """Refuses a percentile of which too little is known: that of too few slow requests, or of lengths never seen."""
    for station in model.stations:
        beyond = station.own.answers_beyond(demand.quantile)
        if beyond < _SLOWEST:
            raise ScenarioError(
                f"how requests of {station.asked} differ is drawn from the {station.own.counts.sum()} that were alone"
                f" in flight, of which {beyond} took longer than this percentile, and {_SLOWEST} must have; run the"
                f" lightest stage {max(2, math.ceil(_SLOWEST / max(beyond, 1)))} times as long"
            )
        if station.own.unseen > _unknown_share(demand):
            raise ScenarioError(
                f"{station.own.unseen:.2%} of the requests of {station.asked} have lengths of which none was alone in"
                " flight: too many for this percentile; run the lightest stage longer"
            )


def _check_limit(model: ServiceModel, demand: Demand) -> None:
    """Refuses a limit that a request cannot keep even alone."""
    alone_ms = quantile_ms(model.latencies_s(0.01 / model.binding.execution_s(1), count=20_000), demand)
    if alone_ms > demand.p99_ms:
        raise ScenarioError(
            f"a request alone takes {alone_ms:.1f} ms at this percentile, the limit is {demand.p99_ms:g} ms: no number"
            " of machines keeps it; raise the limit, or make the model faster"
        )


def _checks(runs: list[Results], model: ServiceModel, demand: Demand) -> list[dict[str, Any]]:
    """Returns how near the simulation comes to what was measured, and refuses one that is far from it."""
    key = "p99" if demand.quantile == 0.99 else "p999"
    checks = []
    for run in runs:
        for stage in run["stages"]:
            if _is_poisson(stage) and _is_answered(stage, demand):
                rate = stage["offered_per_s"]
                times_s = model.latencies_s(rate, count=_TRIAL_REQUESTS, change=partial(_as_served, run))
                simulated, measured = quantile_ms(times_s, demand), stage["latency_ms"][key]
                check = {"rate_per_s": rate, "measured_ms": measured, "simulated_ms": simulated}
                checks.append({**check, "error": simulated / measured - 1})
    if not checks:
        failures = _failures([stage for run in runs for stage in run["stages"] if _is_poisson(stage)], demand)
        raise ScenarioError(
            f"no stage is there to hold the simulation to: {failures}; their `errors` in results.json say why, run them"
            " again without"
            if failures
            else _NO_STAGE
        )
    # Far beyond the limit both are large, and by how much is of no account: unless only one of them says so.
    near = [check for check in checks if min(check["measured_ms"], check["simulated_ms"]) <= _NEAR * demand.p99_ms]
    if not near:
        raise ScenarioError(
            f"no stage was within {_NEAR} times the limit of {demand.p99_ms:g} ms: run open stages at lower rates"
        )
    check = max(near, key=lambda check: abs(check["error"]))
    if abs(check["error"]) > _WORST_ERROR:
        raise ScenarioError(
            f"at {check['rate_per_s']:.0f}/s {check['measured_ms']:.1f} ms were measured and"
            f" {check['simulated_ms']:.1f} simulated: these runs do not carry a plan (the most is {_WORST_ERROR:.0%});"
            " run them longer, on a quiet machine, with the load generator on another one"
        )
    return sorted(checks, key=lambda check: check["rate_per_s"])


def _as_served(run: Results, station: Station) -> Replica:
    """Returns a station's replica with the instances of a run."""
    return replace(station.replica, instances=run["served"][station.step]["instances"])


def _curve(model: ServiceModel, demand: Demand, capacity: float) -> list[dict[str, float]]:
    """Returns the limit's percentile of one machine over the rate, as far as it is a number to look at."""
    rates = np.linspace(0.05, 1.1, _CURVE_POINTS) * capacity
    points = [(rate, quantile_ms(model.latencies_s(rate, count=_TRIAL_REQUESTS), demand)) for rate in rates.tolist()]
    return [{"rate_per_s": rate, "p99_ms": p99_ms} for rate, p99_ms in points if p99_ms <= 3 * demand.p99_ms]


def _knee_per_s(model: ServiceModel) -> float:
    """Returns the rate of one machine at which most is served for its mean latency, by simulation, to a fiftieth."""
    rates = (np.linspace(0.02, 0.98, 49) * model.most_per_s()).tolist()
    powers = [rate / model.latencies_s(rate, count=_TRIAL_REQUESTS // 4).mean() for rate in rates]
    return float(rates[int(np.argmax(powers))])


def _delay_us(run: Results) -> int:
    """Returns the longest that a batcher waits for companions, of all models, since scaling is by the worst of them."""
    return max(
        (entry["queue_delay_us"] for entry in run["served"].values() if entry["max_batch_size"] > 1),
        default=0,
    )


def _what_if(model: ServiceModel, demand: Demand, measured_per_s: float) -> list[dict[str, Any]]:
    """Returns what changes would leave of the machines (before any loss), the best first.

    A changed machine may go as near to its saturation as the measured one.
    """
    changes: dict[str, Callable[[Replica], Replica]] = {
        "an execution takes 20 % less (another precision, a smaller model)": lambda replica: replace(
            replica, fixed_s=0.8 * replica.fixed_s, per_row_s=0.8 * replica.per_row_s
        ),
        "texts are 20 % shorter": lambda replica: replace(replica, per_row_s=0.8 * replica.per_row_s),
        "the batcher waits 2 ms longer": lambda replica: replace(replica, delay_s=replica.delay_s + 0.002),
        "one instance more, on a core of its own": lambda replica: replace(
            replica, instances=replica.instances + 1, slowdown=(1.0,) * (replica.instances + 1)
        ),
    }
    if not math.isinf(model.binding.cores):
        changes["one instance more, on the same cores"] = lambda replica: replace(
            replica, instances=replica.instances + 1
        )
    found = []
    for said, changed in changes.items():
        change = partial(_changed, changed)
        capacity = machine_capacity(model, demand, change)
        if capacity > 0:
            # One that needs more machines than can be planned is no remedy.
            with contextlib.suppress(ScenarioError):
                bound_per_s = measured_per_s * model.most_per_s(change) / model.most_per_s()
                machines = fewest(model, demand, capacity, bound_per_s, change)
                found.append({"change": said, "machines": machines, "rate_per_s": capacity})
    return sorted(found, key=lambda entry: (entry["machines"], -entry["rate_per_s"]))


def _changed(changed: Callable[[Replica], Replica], station: Station) -> Replica:
    return changed(station.replica)
