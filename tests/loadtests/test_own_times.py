"""How requests differ is found again from runs in which the rare long ones came too often, too seldom, or never."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from tritonpress_loadtests import histograms
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.own_times import own_times
from tritonpress_loadtests.service_model import fit_service

SHARES = {"128": 0.92, "512": 0.06, "2048": 0.02}
TIMES_S = {"128": 0.05, "512": 0.15, "2048": 0.45}
MEAN_S = sum(SHARES[up_to] * TIMES_S[up_to] for up_to in SHARES)
REST_S = 0.003
BATCH = 16


def stage(rate_per_s: float, asked: list[str], *, seed: int = 0) -> dict[str, Any]:
    """Returns a stage in which one instance answers queries of these classes, what has come meanwhile at once."""
    chance = np.random.default_rng(seed)
    due_s = np.cumsum(chance.exponential(1 / rate_per_s, len(asked)))
    own_s = np.array([TIMES_S[up_to] for up_to in asked]) * chance.gamma(100, 1 / 100, len(asked))
    alone = defaultdict(histograms.new)
    latencies_s, executions = [], defaultdict(list)
    waited_s = free_s = 0.0
    first = 0
    while first < len(asked):
        start_s = max(free_s, due_s[first])
        last = min(int(np.searchsorted(due_s, start_s, side="right")), first + BATCH)
        takes_s = float(own_s[first:last].sum())
        free_s = start_s + takes_s
        executions[last - first].append(takes_s)
        for place in range(first, last):
            waited_s += start_s - due_s[place]
            latencies_s.append(free_s + REST_S - due_s[place])
            if place == 0 or due_s[place] > due_s[place - 1] + latencies_s[place - 1]:
                alone[asked[place]].record_value(round(latencies_s[-1] * 1e6))
        first = last
    p50, p99, p999 = np.quantile(latencies_s, [0.5, 0.99, 0.999]).tolist()
    row = {
        "model": "m_step", "queue_us": 1e6 * waited_s / len(asked),
        "batch_sizes": {str(size): len(times) for size, times in executions.items()},
        "execution_ms": {str(size): 1e3 * float(np.mean(times)) for size, times in executions.items()},
    }  # fmt: skip
    latency_ms = {"mean": 1e3 * float(np.mean(latencies_s)), "p50": 1e3 * p50, "p99": 1e3 * p99, "p999": 1e3 * p999}
    figures = {
        "latency_ms": latency_ms, "whole_mean_ms": latency_ms["mean"], "words_up_to": dict(Counter(asked)),
        "alone": {up_to: histograms.encoded(own) for up_to, own in alone.items()},
    }  # fmt: skip
    return {
        "models": [row], "by_model": {"m": figures},
        "generator": {"processes": 1}, "duration_s": float(due_s[-1]),
        "offered_per_s": rate_per_s, "latency_ms": latency_ms,
    }  # fmt: skip


def drawn(count: int, *, seed: int) -> list[str]:
    chance = np.random.default_rng(seed)
    return [str(up_to) for up_to in chance.choice(list(SHARES), count, p=list(SHARES.values()))]


@pytest.fixture(scope="module")
def truth_ms() -> dict[float, tuple[float, float]]:
    """The true p50 and p99 by the share of the time that the server is busy."""
    found = {}
    for share in (0.5, 0.7, 0.85):
        parts = [stage(share / MEAN_S, drawn(40_000, seed=seed), seed=seed + 1)["latency_ms"] for seed in (10, 20, 30)]
        found[share] = np.mean([part["p50"] for part in parts]), np.mean([part["p99"] for part in parts])
    return found


@pytest.mark.parametrize("longest", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_the_longest_count_as_often_as_they_are_asked(longest: int, truth_ms: dict[float, tuple[float, float]]) -> None:
    """Whether 0.3 or 2.7 % of the light stage's requests were of the longest, the same p99 is foretold."""
    light = ["128"] * (282 - longest) + ["512"] * 18 + ["2048"] * longest
    np.random.default_rng(3).shuffle(light)
    planned = [stage(0.1 / MEAN_S, light)]
    planned += [stage(share / MEAN_S, drawn(2000, seed=seed), seed=seed) for seed, share in enumerate((0.3, 0.6, 0.9))]
    config = {"instances": 1, "max_batch_size": BATCH, "batched": True, "queue_delay_us": 0}
    run = {
        "stages": planned, "served": {"m_step": config}, "machine": {"cores": 2},
        "scenario": {"requests": [{"model": "m", "weight": 1, "words_up_to": SHARES}]},
    }  # fmt: skip
    model = fit_service([run])
    for share, truth in truth_ms.items():
        simulated = 1e3 * np.quantile(model.latencies_s(share / MEAN_S, count=300_000), [0.5, 0.99])
        assert simulated == pytest.approx(truth, rel=0.15)


def test_a_class_takes_what_it_takes_by_itself_however_busy_the_server_is() -> None:
    for share in (0.1, 0.5, 0.8):
        one = stage(share / MEAN_S, drawn(20_000, seed=4), seed=5)
        own = own_times("m", [one], SHARES, REST_S)
        assert own.mean_s == pytest.approx(MEAN_S, rel=0.02)
        for up_to, each_s in TIMES_S.items():
            near = abs(own.times_s / each_s - 1) < 0.45
            assert own.chances[near].sum() == pytest.approx(SHARES[up_to], rel=0.01)
            assert own.times_s[near] @ own.chances[near] / SHARES[up_to] == pytest.approx(each_s, rel=0.02)


def test_a_class_that_was_never_answered_is_refused_unless_it_hardly_comes() -> None:
    light = [stage(1, ["128", "512"] * 20)]
    message = r"no query to m of 1025 to 2048 words was answered while .* 2.0% are: .* run the lightest stage longer"
    with pytest.raises(ScenarioError, match=message):
        own_times("m", light, SHARES, REST_S)
    own = own_times("m", light, {"128": 0.9, "512": 0.0995, "2048": 0.0005}, REST_S)
    assert own.times_s.max() < 0.3
    assert own.chances.sum() == pytest.approx(1)
    assert own.unseen == pytest.approx(0.0005)
    with pytest.raises(ScenarioError, match="was answered while no other was in flight"):
        own_times("m", light, {"128": 0.9, "512": 0.0985, "1024": 0.0008, "2048": 0.0007}, REST_S)


def test_of_several_processes_only_the_lightest_stage_counts() -> None:
    """Each knows only its own requests, so that those it takes for alone had to wait for others'."""
    light, heavy = (stage(share / MEAN_S, drawn(500, seed=4), seed=5) for share in (0.1, 0.8))
    light["generator"]["processes"] = heavy["generator"]["processes"] = 4
    alone = own_times("m", [light], SHARES, REST_S).counts.sum()
    assert own_times("m", [light, heavy], SHARES, REST_S).counts.sum() == alone
    heavy["generator"]["processes"] = 1
    assert own_times("m", [light, heavy], SHARES, REST_S).counts.sum() > alone


def test_answers_beyond_a_quantile_are_counted_not_weighed() -> None:
    """Of the longest, 2 % of the requests, one single answer is no distribution."""
    for longest in (1, 5):
        asked = ["128"] * 500 + ["512"] * 30 + ["2048"] * longest
        own = own_times("m", [stage(0.01, asked)], SHARES, REST_S)
        assert own.answers_beyond(0.99) == longest // 2
        assert own.answers_beyond(0.5) > 200
