"""What users see while machines are away: one is lost, a zone is lost, all are replaced in turn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tritonpress_loadtests.demand import Demand, pool_requests, quantile_ms
from tritonpress_loadtests.service_model import ServiceModel
from tritonpress_loadtests.simulator import Outage

ROLLING_SHARE = 0.1
"""Of the machines, how many are replaced at a time, at least one."""
_AWAY_FROM, _AWAY_TO = 0.2, 0.9


def during_outages(model: ServiceModel, demand: Demand, machines: int) -> list[dict[str, Any]]:
    """Returns a row an outage, at the peak: what, away, requests, failed, p99_ms, overloaded.

    Requests and the percentile are of those that are due while machines are away; `failed` were in a machine that is
    lost, and a client that sends them again (ours does) has their answers. `overloaded` says that the machines that are
    left serve less than the peak: then the queue grows for as long as the outage lasts, and `p99_ms` is of a short one.
    The balancer is taken to know at once who is away.
    """
    duration_s = pool_requests(demand, machines) / demand.rate_per_s
    from_s, to_s = _AWAY_FROM * duration_s, _AWAY_TO * duration_s
    zone, step = math.ceil(machines / demand.zones), max(1, math.floor(ROLLING_SHARE * machines))
    courses: dict[str, tuple[int, tuple[Outage, ...]]] = {
        "a machine is lost": (1, (Outage(0, 1, from_s, math.inf, lost=True),))
    }
    if zone > 1:
        courses["a zone is lost"] = (zone, (Outage(0, zone, from_s, math.inf, lost=True),))
    courses[f"a rolling update, {step} at a time"] = (step, _rolling(machines, step, from_s, to_s))
    most = model.most_per_s()
    return [
        {
            "what": what,
            "away": away,
            "overloaded": demand.rate_per_s > (machines - away) * most,
            **_during(model, demand, machines, outages, to_s),
        }
        for what, (away, outages) in courses.items()
        if away < machines
    ]


def _rolling(machines: int, step: int, from_s: float, to_s: float) -> tuple[Outage, ...]:
    """Returns the outages of an update that takes all machines away in turn; what they hold is answered first."""
    turns = math.ceil(machines / step)
    each_s = (to_s - from_s) / turns
    return tuple(
        Outage(
            turn * step,
            min(machines, (turn + 1) * step),
            from_s + turn * each_s,
            from_s + (turn + 1) * each_s,
            lost=False,
        )
        for turn in range(turns)
    )


def _during(
    model: ServiceModel, demand: Demand, machines: int, outages: tuple[Outage, ...], to_s: float
) -> dict[str, Any]:
    due_s, times_s = model.simulated_s(
        demand.rate_per_s,
        count=pool_requests(demand, machines),
        replicas=machines,
        policy=demand.policy,
        outages=outages,
    )
    failed = int(np.isnan(times_s).sum())
    seen = times_s[(due_s >= outages[0].from_s) & (due_s < to_s)]
    answered = seen[~np.isnan(seen)]
    return {"requests": len(seen), "failed": failed, "p99_ms": quantile_ms(answered, demand)}
