"""Machines behind a balancer: how many are needed, and what they bear."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tritonpress_loadtests.demand import Demand
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.own_times import OwnTimes
from tritonpress_loadtests.plan import machine_capacity
from tritonpress_loadtests.pool import fewest, fewest_of_zones, machines_needed, pool_ms
from tritonpress_loadtests.service_model import ServiceModel, Station
from tritonpress_loadtests.simulator import POLICIES, Replica


def service(replica: Replica, *, cores: float = math.inf, elsewhere_s: float = 0.0) -> ServiceModel:
    """Returns a machine of one model whose requests scatter by a gamma distribution."""
    times_s = np.sort(np.random.default_rng(0).gamma(4, 0.25, 5_000))
    counts = np.ones(len(times_s), np.int64)
    own = OwnTimes(times_s, counts / len(counts), counts, counts, 0.0, 1.0)
    return ServiceModel((Station("m", 1.0, "m_step", replica, 0.002, own, replica.max_batch, cores, elsewhere_s),))


MODEL = service(Replica(instances=1, max_batch=8, fixed_s=0.006, per_row_s=0.004))


@pytest.mark.parametrize("policy", POLICIES)
def test_machines_are_the_fewest_and_headroom_is_what_they_bear(policy: str) -> None:
    demand = Demand(peak_per_s=20_000, p99_ms=60, survive="nothing", policy=policy)
    alone = machine_capacity(MODEL, demand)
    machines = machines_needed(MODEL, demand, alone, math.inf)
    few = machines["at_limit"]
    assert pool_ms(MODEL, demand, few) <= 60 < pool_ms(MODEL, demand, math.floor(few / 1.04))
    # Requests that are drawn at random come to each as to one alone; a balancer that knows the load does better.
    assert machines["peak_per_s"] == pytest.approx(alone, rel=0.03) if policy == "random" else alone
    assert machines["peak_per_s"] > alone or policy == "random"
    assert 0 <= machines["headroom"] < 0.05
    assert machines["headroom_ends_at"] == "limit"
    grown = replace(demand, growth=1 + machines["headroom"])
    assert pool_ms(MODEL, grown, few) <= 60 < pool_ms(MODEL, replace(grown, growth=1.03 * grown.growth), few)


def test_no_machine_gets_more_than_was_measured() -> None:
    demand = Demand(peak_per_s=20_000, p99_ms=200, survive="nothing")
    machines = machines_needed(MODEL, demand, machine_capacity(MODEL, demand), 100)
    assert machines["at_limit"] == pytest.approx(20_000 / 110, rel=0.03)
    assert machines["headroom_ends_at"] == "measured"
    assert machines["headroom"] == pytest.approx(machines["at_limit"] * 110 / 20_000 - 1)


@pytest.mark.parametrize(("policy", "p99_ms"), [("random", 10_000), ("two_choices", 1_000), ("least_loaded", 10_000)])
def test_queues_that_grow_are_never_accepted(policy: str, p99_ms: float) -> None:
    """Where the limit is long a pool is overloaded for long before it is missed."""
    demand = Demand(peak_per_s=100_000, p99_ms=p99_ms, policy=policy)
    machines = fewest(MODEL, demand, machine_capacity(MODEL, demand), math.inf)
    assert machines * MODEL.most_per_s() > demand.rate_per_s
    assert pool_ms(MODEL, demand, math.floor(demand.rate_per_s / MODEL.most_per_s())) == math.inf


@pytest.mark.parametrize(
    ("needed", "zones", "machines"),
    [(1, 3, 2), (3, 3, 5), (4, 3, 6), (5, 3, 8), (1, 4, 2), (4, 4, 6), (7, 4, 10), (2, 2, 4)],
)
def test_a_zone_is_survived_by_the_fewest_machines(needed: int, zones: int, machines: int) -> None:
    assert fewest_of_zones(needed, zones) == machines
    more, fewer = (count - math.ceil(count / zones) for count in (machines, machines - 1))
    assert more >= needed > fewer


def test_more_machines_than_can_be_planned_are_refused() -> None:
    demand = Demand(peak_per_s=1e8, p99_ms=60)
    with pytest.raises(ScenarioError, match="more than 20000 machines would be needed for 1e"):
        fewest(MODEL, demand, machine_capacity(MODEL, demand), math.inf)


def test_a_large_pool_is_like_one_of_some_hundreds() -> None:
    """A million requests a second over thousands of machines; each has what it has among five hundred."""
    each = 0.9 * machine_capacity(MODEL, Demand(peak_per_s=1, p99_ms=60))
    for policy in ("random", "two_choices"):
        times_s = MODEL.latencies_s(7_000 * each, count=3_000_000, replicas=7_000, policy=policy)
        demand = Demand(peak_per_s=7_000 * each, p99_ms=60, policy=policy)
        assert pool_ms(MODEL, demand, 7_000) == pytest.approx(1e3 * np.quantile(times_s, 0.99), rel=0.03)


def test_a_limit_that_no_rate_keeps_is_no_capacity() -> None:
    slow = service(Replica(instances=1, max_batch=8, fixed_s=0.1, per_row_s=0.0))
    assert machine_capacity(slow, Demand(peak_per_s=1, p99_ms=60)) == 0


def test_instances_that_share_cores_are_saturated_together() -> None:
    """Two cores: 10 ms of one for the execution, and as much elsewhere, make 100/s of any number of instances."""
    model = service(Replica(instances=1, max_batch=1, fixed_s=0.01, per_row_s=0.0), cores=2.0, elsewhere_s=0.01)
    assert model.most_per_s() == pytest.approx(100, rel=0.01)
    assert model.most_per_s(lambda station: replace(station.replica, instances=4)) == pytest.approx(100, rel=0.02)
