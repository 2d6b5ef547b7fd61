"""What users see while machines are away: one is lost, a zone is lost, all are replaced in turn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tritonpress_loadtests.demand import Demand, quantile_ms
from tritonpress_loadtests.pool import Pool, simulated_pool
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
    The balancer is taken to know at once who is away. Of many machines some hundreds are simulated (`pool.Pool`), of
    which one that is lost is a larger part.
    """
    pool = simulated_pool(demand, machines)
    duration_s = pool.count / pool.rate_per_s
    from_s, to_s = _AWAY_FROM * duration_s, _AWAY_TO * duration_s
    zone, zone_simulated = (math.ceil(count / demand.zones) for count in (machines, pool.machines))
    step, step_simulated = (max(1, math.floor(ROLLING_SHARE * count)) for count in (machines, pool.machines))
    courses: list[tuple[str, int, tuple[Outage, ...]]] = [
        ("a machine is lost", 1, (Outage(0, 1, from_s, math.inf, lost=True),))
    ]
    if zone > 1:
        courses.append(("a zone is lost", zone, (Outage(0, zone_simulated, from_s, math.inf, lost=True),)))
    update = _rolling(pool.machines, step_simulated, from_s, to_s)
    courses.append((f"a rolling update, {step} at a time", step, update))
    most = model.most_per_s()
    return [
        {
            "what": what,
            "away": away,
            "overloaded": demand.rate_per_s > (machines - away) * most,
            **_during(model, demand, pool, outages, to_s, machines=machines, away=away),
        }
        for what, away, outages in courses
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
    model: ServiceModel,
    demand: Demand,
    pool: Pool,
    outages: tuple[Outage, ...],
    to_s: float,
    *,
    machines: int,
    away: int,
) -> dict[str, Any]:
    due_s, times_s = model.simulated_s(
        pool.rate_per_s, count=pool.count, replicas=pool.machines, policy=demand.policy, outages=outages
    )
    failed = int(np.isnan(times_s).sum())
    seen = times_s[(due_s >= outages[0].from_s) & (due_s < to_s)]
    answered = seen[~np.isnan(seen)]
    return {
        "requests": round(len(seen) * machines / pool.machines),
        "failed": round(failed * away / (outages[0].last - outages[0].first)),
        "p99_ms": quantile_ms(answered, demand),
    }
