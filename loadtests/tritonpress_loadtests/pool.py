"""Machines behind a balancer: what users see of them by simulation, and how many keep the limit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from tritonpress_loadtests.demand import Demand, quantile_ms
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.service_model import Change, ServiceModel, as_measured

BEYOND = 1.10
"""How far beyond the highest rate that was measured a machine may go in a plan."""
_LIMITS = 100  # as many times the limit: a queue that grows shows by then
_LEAST_REQUESTS = 200_000
_MOST_REQUESTS = 1_000_000
_SIMULATED = 500  # machines; what users see hardly depends on the number of many
_LEAST_SIMULATED = 10
_MOST_MACHINES = 20_000
_FEWEST = 0.02  # machines, as near as they are counted


@dataclass(frozen=True)
class Pool:
    """What is simulated of machines: as many as matter, each at its own rate."""

    machines: int
    rate_per_s: float
    count: int
    """Of the requests."""


def simulated_pool(demand: Demand, machines: int) -> Pool:
    """Returns what is simulated of that many machines at the peak."""
    each_per_s = demand.rate_per_s / machines
    each = each_per_s * _LIMITS * demand.p99_ms / 1e3
    simulated = min(machines, max(_LEAST_SIMULATED, min(_SIMULATED, math.floor(_MOST_REQUESTS / each))))
    count = min(max(_LEAST_REQUESTS, simulated * each), _MOST_REQUESTS)
    return Pool(simulated, simulated * each_per_s, int(count))


def pool_ms(model: ServiceModel, demand: Demand, machines: int, change: Change = as_measured) -> float:
    """Returns the limit's percentile in ms of that many machines at the peak; infinite where their queues grow."""
    if demand.rate_per_s >= machines * model.most_per_s(change):
        return math.inf
    pool = simulated_pool(demand, machines)
    times_s = model.latencies_s(
        pool.rate_per_s, count=pool.count, change=change, replicas=pool.machines, policy=demand.policy
    )
    return quantile_ms(times_s, demand)


def fewest(
    model: ServiceModel, demand: Demand, capacity_per_s: float, measured_per_s: float, change: Change = as_measured
) -> int:
    """Returns the fewest machines that keep the limit behind the balancer, to 2 %.

    A balancer that knows the load may let each take more than one keeps alone, one at random less.

    Args:
        model: Of one machine.
        demand: What must be served.
        capacity_per_s: What one machine keeps alone.
        measured_per_s: The highest rate that was measured of one; infinite where none is the bound.
        change: What each station's replica is; what was measured by default.

    Raises:
        ScenarioError: More machines would be needed than can be planned.
    """
    bound = min(model.most_per_s(change), BEYOND * measured_per_s)
    keep = max(1, math.ceil(demand.rate_per_s / max(min(capacity_per_s, bound), 1e-9)))
    while keep > _MOST_MACHINES or pool_ms(model, demand, keep, change) > demand.p99_ms:
        keep = math.ceil(1.1 * keep)
        if keep > _MOST_MACHINES:
            raise ScenarioError(
                f"more than {_MOST_MACHINES} machines would be needed for {demand.rate_per_s:g}/s; divide the service,"
                " or make the model faster"
            )
    miss = min(keep, math.ceil(demand.rate_per_s / bound)) - 1
    while keep - miss > max(1.0, _FEWEST * keep):
        middle = (keep + miss) // 2
        if pool_ms(model, demand, middle, change) <= demand.p99_ms:
            keep = middle
        else:
            miss = middle
    return keep


def machines_needed(
    model: ServiceModel, demand: Demand, capacity_per_s: float, measured_per_s: float
) -> dict[str, Any]:
    """Returns how many machines keep the limit, also after a loss, and what these bear: see `make_plan`."""
    at_limit = fewest(model, demand, capacity_per_s, measured_per_s)
    survives = {
        "nothing": at_limit,
        "machine": at_limit + 1,
        "zone": fewest_of_zones(at_limit, demand.zones),
    }[demand.survive]
    headroom, bound = _headroom(model, demand, survives, measured_per_s)
    return {
        "at_limit": at_limit,
        "survives": survives,
        "p99_ms": pool_ms(model, demand, survives),
        "p99_ms_after_loss": pool_ms(model, demand, at_limit),
        "peak_per_s": demand.rate_per_s / survives,
        "headroom": headroom,
        "headroom_ends_at": bound,
    }


def fewest_of_zones(needed: int, zones: int) -> int:
    """Returns the fewest machines, spread evenly over the zones, of which `needed` are left when any zone is lost.

    A zone has one more than another at most: of m machines ceil(m / zones) may be lost.
    """
    return math.ceil(needed * zones / (zones - 1))


def _headroom(model: ServiceModel, demand: Demand, machines: int, measured_per_s: float) -> tuple[float, str]:
    """Returns by how much the peak may grow with these machines, all there, to 1 %, and what ends it.

    That is the limit, or that no more was measured of one machine.
    """
    most = machines * BEYOND * measured_per_s / demand.rate_per_s
    if pool_ms(model, _grown(demand, most), machines) <= demand.p99_ms:
        return max(0.0, most - 1), "measured"
    low, high = 1.0, max(1.0, min(most, machines * model.most_per_s() / demand.rate_per_s))
    while high - low > 0.01:
        middle = (low + high) / 2
        keeps = pool_ms(model, _grown(demand, middle), machines) <= demand.p99_ms
        low, high = (middle, high) if keeps else (low, middle)
    return low - 1, "limit"


def _grown(demand: Demand, times: float) -> Demand:
    return replace(demand, growth=times * demand.growth)
