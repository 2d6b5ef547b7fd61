"""Schedules: the rates and the processes that were asked for, fixed by the seed."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tritonpress_loadtests.arrivals import Arrivals, moments, peak_rate_per_s, replayed, schedule
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.stages import Breakpoint, bounds

PARSE = TypeAdapter(Arrivals)
KINDS: list[Any] = ["poisson", "constant", "day", {"bursts": {"size": 7}}, {"day": {"hourly": [1, 3, 0]}}]


def made(kind: Any, rate_per_s: float = 500, duration_s: float = 40, seed: str = "0") -> Any:
    return schedule(PARSE.validate_python(kind), rate_per_s, duration_s, seed=seed, folder=Path())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_process_has_the_mean_rate_and_is_fixed_by_its_seed(kind: Any) -> None:
    due_s = made(kind)
    assert len(due_s) == pytest.approx(500 * 40, rel=0.06)
    assert (np.diff(due_s) >= 0).all()
    assert due_s[0] >= 0
    assert due_s[-1] < 40
    assert np.array_equal(due_s, made(kind))
    assert kind == "constant" or not np.array_equal(due_s, made(kind, seed="1"))


def test_gaps_are_those_of_the_process() -> None:
    gaps_s = np.diff(made("poisson"))
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.05)  # exponential
    assert np.diff(made("constant")) == pytest.approx(1 / 500)
    sizes = np.unique(made({"bursts": {"size": 7}}), return_counts=True)[1]
    assert set(sizes.tolist()) == {7}


def test_a_days_curve_peaks_where_it_says() -> None:
    counts = np.histogram(made("day", 2000, 240), bins=24, range=(0, 240))[0]
    assert 19 <= counts.argmax() <= 21
    assert counts.argmin() in (2, 3, 4)
    assert peak_rate_per_s(made("day", 2000, 240), 10) / 2000 == pytest.approx(1.9, rel=0.1)


def test_pieces_have_their_rates_and_end_where_they_say() -> None:
    # 100/s for a half, 1,000/s for a fourth, 100/s for a fourth, of 40 s.
    due_s = made({"pieces": {"rates_per_s": [100, 1000, 100], "durations": [2, 1, 1]}}, rate_per_s=0)
    counts = np.histogram(due_s, bins=[0, 20, 30, 40])[0]
    # Four standard deviations of a Poisson count.
    for count, expected in zip(counts, (2000, 10_000, 1000), strict=True):
        assert abs(count - expected) < 4 * expected**0.5
    gaps_s = np.diff(due_s[(due_s > 20) & (due_s < 30)])
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.05)  # exponential
    assert (np.diff(due_s) >= 0).all()


def test_going_through_a_schedule_takes_no_memory() -> None:
    due_s = made("constant", 1000, 1000)
    tracemalloc.start()
    try:
        assert sum(moments(due_s)) == pytest.approx(due_s.sum())
        # All of them as Python's numbers would take 32 MB.
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_replayed_moments_keep_their_gaps(tmp_path: Path) -> None:
    path = tmp_path / "moments.txt"
    path.write_text("1700000010.5\n1700000010\n\n1700000013\n")
    kind = PARSE.validate_python({"replay": {"file": "moments.txt", "speed": 2}})
    assert schedule(kind, 0, 60, seed="", folder=tmp_path) == pytest.approx([0, 0.25, 1.5])
    assert schedule(kind, 0, 1, seed="", folder=tmp_path) == pytest.approx([0, 0.25])
    for text, words in (("", "got 0"), ("1\nnan", "finite"), ("1\nten", ":2 must be a moment")):
        path.write_text(text)
        with pytest.raises(ScenarioError, match=words):
            replayed(path)


@given(
    first=st.floats(1, 100),
    factor=st.floats(1.5, 1000),
    capacity=st.floats(0.5, 200_000),
    precision=st.floats(0.01, 0.5),
)
def test_the_search_ends_around_the_breakpoint(first: float, factor: float, capacity: float, precision: float) -> None:
    search = Breakpoint(from_per_s=first, to_per_s=first * factor, precision=precision)
    trials: list[tuple[float, bool]] = []
    while (stage := search.next_stage(trials)) is not None:
        assert stage.rate_per_s is not None
        trials.append((stage.rate_per_s, stage.rate_per_s <= capacity))
        assert len(trials) < 40
    kept, missed = bounds(trials)
    if kept is not None and missed is not None:
        assert kept <= capacity < missed
        assert missed / kept <= 1 + precision
    elif missed is None:
        assert capacity >= search.to_per_s * 0.999
    else:
        assert capacity < first / 32
