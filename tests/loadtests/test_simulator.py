"""The simulator against exact formulas of queueing theory, and what outages and batches must do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tritonpress_loadtests.simulator import POLICIES, Outage, Replica, simulate, simulate_queues

COUNT = 4_000_000


def poisson(rate_per_s: float, count: int = COUNT, seed: int = 1) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate_per_s, count))


def erlang_c(servers: int, offered: float) -> float:
    """Returns the probability of waiting in M/M/c."""
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)


# A long queue forgets slowly: near full use a mean needs more requests for the same certainty.
@pytest.mark.parametrize(("servers", "utilization", "runs"), [(1, 0.5, 1), (1, 0.7, 1), (4, 0.8, 1), (16, 0.9, 10)])
def test_m_m_c_waits_as_erlang_says(servers: int, utilization: float, runs: int) -> None:
    waits, waiting = [], []
    for run in range(runs):
        factors = np.random.default_rng([2, run]).exponential(1, COUNT)
        due_s = poisson(servers * utilization, seed=3 + run)
        wait = simulate(due_s, factors, Replica(servers, 1, 0.0, 1.0)) - factors
        waits.append(wait.mean())
        waiting.append((wait > 1e-9).mean())
    expected = erlang_c(servers, servers * utilization)
    assert np.mean(waits) == pytest.approx(expected / (servers * (1 - utilization)), rel=0.01)
    assert np.mean(waiting) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("utilization", [0.3, 0.6, 0.8])
def test_m_d_1_waits_as_pollaczek_and_khinchine_say(utilization: float) -> None:
    times, waits = simulate_queues(poisson(utilization), np.ones(COUNT), Replica(1, 1, 0.0, 1.0))
    assert waits.mean() == pytest.approx(utilization / (2 * (1 - utilization)), rel=0.01)
    assert np.abs(times - 1 - waits).max() < 1e-6


def test_a_queue_is_the_time_before_an_execution_begins() -> None:
    # Two share the second execution: it takes 2, of which neither waits.
    times, waits = simulate_queues(np.array([0.0, 0.1, 0.2]), np.ones(3), Replica(1, 2, 0.0, 1.0))
    assert times == pytest.approx([1.0, 2.9, 2.8])
    assert waits == pytest.approx([0.0, 0.9, 0.8])


def test_the_batcher_waits_for_its_delay_and_no_longer() -> None:
    replica = Replica(1, 4, 1.0, 0.0, delay_s=0.5)
    times = simulate(np.array([0.0, 0.1, 0.2]), np.ones(3), replica)
    assert times == pytest.approx([1.5, 1.4, 1.3])  # one execution, begun when the first had waited
    full = simulate(np.array([0.0, 0.1, 0.2, 0.3]), np.ones(4), replica)
    assert full == pytest.approx([1.3, 1.2, 1.1, 1.0])  # full: it does not wait
    assert simulate(np.array([0.0, 0.1]), np.ones(2), Replica(1, 4, 1.0, 0.0)) == pytest.approx([1.0, 1.9])


@pytest.mark.parametrize("policy", POLICIES)
def test_no_request_is_lost_or_served_twice(policy: str) -> None:
    due_s = poisson(900, 100_000)
    factors = np.random.default_rng(0).gamma(4, 0.25, len(due_s))
    times = simulate(due_s, factors, Replica(2, 4, 0.002, 0.003, 0.001), replicas=10, policy=policy)
    assert np.isfinite(times).all()
    assert (times > 0.002 * factors / 4).all()


def test_two_choices_are_better_than_chance_and_the_least_loaded_better_still() -> None:
    due_s, factors = poisson(80, 300_000), np.random.default_rng(0).exponential(1, 300_000)
    p99 = {
        policy: np.quantile(simulate(due_s, factors, Replica(1, 1, 0.0, 1.0), replicas=100, policy=policy), 0.99)
        for policy in POLICIES
    }
    assert p99["least_loaded"] < p99["two_choices"] < p99["random"]
    assert p99["round_robin"] < p99["random"]


@pytest.mark.parametrize("policy", POLICIES)
def test_those_that_are_left_share_what_the_lost_ones_had(policy: str) -> None:
    count = 300_000
    due_s, factors = poisson(50, count), np.random.default_rng(0).exponential(1, count)
    gone = Outage(0, 30, -1.0, math.inf, True)
    left = simulate(due_s, factors, Replica(1, 1, 0.0, 1.0), replicas=100, policy=policy, outages=(gone,))
    alone = simulate(due_s, factors, Replica(1, 1, 0.0, 1.0), replicas=70, policy=policy)
    assert np.quantile(left, [0.5, 0.99]) == pytest.approx(np.quantile(alone, [0.5, 0.99]), rel=0.05)


def test_a_lost_zone_fails_what_it_holds_and_a_rolling_update_fails_nothing() -> None:
    due_s, factors = poisson(600, 60_000), np.ones(60_000)
    replica = Replica(1, 1, 0.0, 0.01)
    lost = simulate(due_s, factors, replica, replicas=9, policy="two_choices", outages=(Outage(0, 3, 50, 70, True),))
    assert 1 <= np.isnan(lost).sum() <= 3 * 20
    during = (due_s > 60) & (due_s < 70)
    # 600/s for 6 replicas of 100/s: the queue grows, where 9 would have been idle for a third of the time.
    assert np.nanmean(lost[during]) > 2 * np.nanmean(lost[due_s < 50])
    updates = tuple(Outage(place, place + 1, 10.0 * place, 10.0 * place + 10, False) for place in range(9))
    assert np.isfinite(simulate(due_s, factors, replica, replicas=9, outages=updates)).all()
    gone = simulate(due_s, factors, replica, replicas=9, outages=(Outage(0, 9, 50, 60, False),))
    assert np.isnan(gone).sum() == ((due_s >= 50) & (due_s < 60)).sum()
