"""Says how many requests of one pool the simulator goes through in a second on one core, and how long large plans take.

.venv/bin/python docs/simulator_speed.py
"""

from __future__ import annotations

import math
import time

import numpy as np
from tritonpress_loadtests.demand import Demand
from tritonpress_loadtests.outages import during_outages
from tritonpress_loadtests.own_times import OwnTimes
from tritonpress_loadtests.plan import machine_capacity
from tritonpress_loadtests.pool import machines_needed
from tritonpress_loadtests.service_model import ServiceModel, Station
from tritonpress_loadtests.simulator import POLICIES, Replica, simulate

_COUNT = 1_000_000
_ROUNDS = 11
_PEAK_PER_S = 1e6
_P99_MS = 60


def main() -> None:
    """Prints the median and the extremes of the rounds, and a line a balancer."""
    generator = np.random.default_rng(0)
    due_s, factors = np.cumsum(generator.exponential(1 / 700, _COUNT)), generator.gamma(4, 0.25, _COUNT)
    replica = Replica(2, 8, 0.001, 0.002)
    simulate(due_s[:1000], factors[:1000], replica)  # compiles
    rates = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        simulate(due_s, factors, replica)
        rates.append(_COUNT / (time.perf_counter() - began) / 1e6)
    print(f"million requests/s: {np.median(rates):.2f} [{min(rates):.2f}–{max(rates):.2f}]")
    print(f"{_PEAK_PER_S:,.0f} requests/s with p99 ≤ {_P99_MS} ms, a zone of three may fail:")
    for policy in POLICIES:
        print(_plan(policy))


def _plan(policy: str) -> str:
    """Returns a line: how many machines, what users see of them, and how long it took to say so."""
    times_s = np.sort(np.random.default_rng(0).gamma(4, 0.25, 5_000))
    counts = np.ones(len(times_s), np.int64)
    own = OwnTimes(times_s, counts / len(counts), counts, counts, 0.0, 1.0)
    replica = Replica(instances=2, max_batch=8, fixed_s=0.006, per_row_s=0.004)
    model = ServiceModel((Station("m", 1.0, "m_step", replica, 0.002, own, 8),))
    demand = Demand(peak_per_s=_PEAK_PER_S, p99_ms=_P99_MS, survive="zone", policy=policy)
    began = time.perf_counter()
    alone = machine_capacity(model, demand)
    machines = machines_needed(model, demand, alone, math.inf)
    outages = during_outages(model, demand, machines["survives"])
    took_s = time.perf_counter() - began
    (zone,) = [outage for outage in outages if outage["what"] == "a zone is lost"]
    each = demand.rate_per_s / machines["at_limit"]
    return (
        f"{policy}: {machines['at_limit']:,} machines at the limit ({each:.0f}/s each, {alone:.0f}/s alone),"
        f" {machines['survives']:,} in all; p99 {machines['p99_ms']:.1f} ms,"
        f" {zone['p99_ms']:.1f} ms while a zone is away; {took_s:.1f} s"
    )


if __name__ == "__main__":
    main()
