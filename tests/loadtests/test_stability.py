"""Warm-up, stability and intervals, on stages whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from tritonpress_loadtests import stability
from tritonpress_loadtests.course import breakpoint_found, recovery_found
from tritonpress_loadtests.histograms import counts, encoded, merged, new, quantiles
from tritonpress_loadtests.measured import Measured, merge
from tritonpress_loadtests.recorder import Recorder
from tritonpress_loadtests.scenario import Slo


def measured(latency_s: np.ndarray, *, per_s: float = 100.0, duration_s: float = 20.0) -> Measured:
    """Returns a stage whose evenly sent requests had those latencies."""
    recorder = Recorder(["m"], duration_s, 5.0)
    for number, each_s in enumerate(latency_s.tolist()):
        recorder.answered(0, 8, number / per_s, number / per_s + each_s, alone=False)
    event = {"duration_s": duration_s, "cpu_share": 0.1, "rss_bytes": 1, "most_in_flight": 1, **recorder.state()}
    return merge([event], ["m"])


def steady(count: int = 2000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(20, 0.0005, count)


def test_a_slow_start_is_cut_and_a_pause_later_is_not() -> None:
    assert stability.warm_up_windows(measured(steady())) == 0
    slow_start = steady()
    slow_start[:300] *= 3  # 3 s of 20
    assert stability.warm_up_windows(measured(slow_start)) == 3
    pause = steady()
    pause[500:700] += 2
    found = measured(pause)
    assert stability.warm_up_windows(found) == 0
    assert quantiles(found.counts(), [0.99])[0] > 2e6


def test_no_more_than_a_quarter_is_cut() -> None:
    falling = steady() * np.linspace(5, 1, 2000)
    found = measured(falling)
    assert stability.warm_up_windows(found) <= 5
    assert stability.verdict(found, stability.warm_up_windows(found))["stable"] is False


def test_what_stands_still_is_stable_and_what_drifts_is_not() -> None:
    assert stability.verdict(measured(steady()), 0) == {"stable": True, "unstable": []}
    drifting = stability.verdict(measured(steady() * np.linspace(1, 1.4, 2000)), 0)
    assert drifting["stable"] is False
    assert [said.split(" differs")[0] for said in drifting["unstable"]] == ["mean latency", "median latency"]
    stops = stability.verdict(measured(steady(1200)), 0)
    assert stops["stable"] is False


def test_intervals_hold_the_truth_nineteen_times_of_twenty() -> None:
    truth_us = 1e6 * np.quantile(steady(1_000_000, seed=99), 0.9)
    held = 0
    for seed in range(40):
        ((low, high),) = stability.intervals_us(measured(steady(seed=seed)), None, 0, [0.9])
        held += low <= truth_us <= high
    assert held >= 34


def test_histograms_are_exact_to_a_thousandth_and_survive_the_wire() -> None:
    values = np.random.default_rng(0).lognormal(8, 2, 3000).astype(int) + 1
    histogram = new()
    for value in values.tolist():
        histogram.record_value(value)
    recorded = counts(merged([encoded(histogram)]))
    assert recorded[1].sum() == 3000
    for share in (0.01, 0.5, 0.99, 1.0):
        exact = np.quantile(values, share, method="inverted_cdf")
        assert quantiles(recorded, [share])[0] == pytest.approx(exact, rel=1e-3)


def behind_peak(
    p99_ms: list[float | None], failed: list[int], *, peak_ended_s: float = 4.0, answered: int = 10
) -> list[dict[str, object]]:
    """Returns a stage whose peak ends with the second of its windows of 2 s; each has so many answers."""
    windows = {"width_s": 2.0, "p99_ms": [9, 9, *p99_ms], "failed": [0, 0, *failed]}
    windows["answered_per_s"] = [answered / 2] * len(windows["failed"])
    return [{"pieces": [{"from_s": 0.0}, {"from_s": 2.0}, {"from_s": peak_ended_s}], "windows": windows}]


def test_recovery_is_the_time_until_every_later_window_kept_the_limit() -> None:
    slo = Slo(p99_ms=50)
    assert recovery_found(behind_peak([90, 40, 60, 20, None, 10], [0] * 6), slo) == {"recovered_after_s": 6.0}
    assert recovery_found(behind_peak([9, 9], [0, 0]), slo) == {"recovered_after_s": 0.0}
    # The window in which the peak ends is the peak's.
    assert recovery_found(behind_peak([90, 9], [0, 0], peak_ended_s=4.5), slo) == {"recovered_after_s": 1.5}
    assert recovery_found(behind_peak([9, 9], [0, 1]), slo) == {"recovered_after_s": None}
    ended_in_peak = [{"pieces": [{"from_s": 0.0}], "windows": {"width_s": 2.0, "p99_ms": [9], "failed": [0]}}]
    assert recovery_found(ended_in_peak, slo) == {"recovered_after_s": None}
    assert recovery_found([], slo) == {"recovered_after_s": None}


@pytest.mark.parametrize(
    ("failed", "slo", "recovered_after_s"),
    [
        ([0] * 19 + [1], Slo(p99_ms=50), 0.0),
        ([0] * 19 + [1], Slo(p99_ms=50, error_rate=0), None),
        # A request that failed is beyond p99 too, which leaves 1 %.
        ([0] * 10 + [2] * 10, Slo(p99_ms=50, error_rate=0.5), None),
        # That few windows fail wholly is within 1 % of all that come behind them, and no recovery before they end.
        ([50, 50] + [0] * 300, Slo(p99_ms=50), 4.0),
        ([0] * 4 + [1] + [0] * 15, Slo(p99_ms=50), 0.0),
        ([1] + [0] * 19, Slo(p99_ms=50), 2.0),
    ],
)
def test_so_many_may_fail_behind_a_peak_as_the_slo_allows(
    failed: list[int], slo: Slo, recovered_after_s: float | None
) -> None:
    stages = behind_peak([9.0] * len(failed), failed, answered=50)
    assert recovery_found(stages, slo) == {"recovered_after_s": recovered_after_s}


def test_a_breakpoint_is_not_found_by_a_generator_that_could_not_offer_the_rate() -> None:
    stages = [
        {"rate_per_s": 100.0, "kept": True, "generator": {"bottleneck": ""}},
        {"rate_per_s": 200.0, "kept": False, "generator": {"bottleneck": "used 99% of a core"}},
    ]
    assert breakpoint_found(stages, lambda stage: stage["kept"]) == {"kept_per_s": 100.0, "missed_per_s": None}
