"""A precision is served only if it keeps the metric and is faster than the one above it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonpress_generator.errors import GateError
from tritonpress_generator.ladder import Rung, climb
from tritonpress_generator.recipe_text import GateConfig
from tritonpress_generator.scores import Scores

CONFIG = GateConfig(dataset="", metric="f1", keep=0.99, confidence="point")


def scores(f1: float) -> Scores:
    return Scores(lambda rows: {"f1": f1}, 100)


BASELINE = scores(0.8)


def rungs(*figures: tuple[float, float | None]) -> list[Rung]:
    return [Rung(name, scores(f1), ms) for name, (f1, ms) in zip(("fp32", "fp16", "int8"), figures, strict=False)]


def test_fastest_that_keeps_the_metric_is_the_last() -> None:
    climbed = climb(CONFIG, BASELINE, rungs((0.8, 3.0), (0.8, 2.0), (0.795, 1.0)))
    assert [*climbed.accepted] == ["fp32", "fp16", "int8"]
    assert climbed.refused == {}
    assert climbed.accepted["int8"].served == 0.795


def test_slower_precision_is_refused_with_both_figures() -> None:
    climbed = climb(CONFIG, BASELINE, rungs((0.8, 3.0), (0.8, 2.0), (0.8, 2.01)))
    assert [*climbed.accepted] == ["fp32", "fp16"]
    assert climbed.refused == {"int8": "must be faster than fp16, which takes 2.000 ms; takes 2.010 ms"}


def test_less_accurate_precision_is_refused_and_the_next_compared_with_the_one_above_it() -> None:
    climbed = climb(CONFIG, BASELINE, rungs((0.8, 3.0), (0.7, 1.0), (0.8, 2.0)))
    assert [*climbed.accepted] == ["fp32", "int8"]
    assert climbed.refused["fp16"].startswith("gate: f1 must stay at or above 0.7920")
    assert "nothing was written" not in climbed.refused["fp16"]


@pytest.mark.parametrize("f1", [0.7, float("nan")])
def test_none_that_keeps_the_metric_is_an_error(f1: float) -> None:
    with pytest.raises(GateError, match=r"f1 must stay at or above 0\.7920 .* nothing was written"):
        climb(CONFIG, BASELINE, rungs((f1, 3.0), (f1, 2.0)))


def test_without_times_the_metric_decides() -> None:
    climbed = climb(CONFIG, BASELINE, rungs((0.8, None), (0.8, None), (0.1, None)))
    assert [*climbed.accepted] == ["fp32", "fp16"]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 10)), min_size=1, max_size=3))
def test_accepted_keep_the_metric_and_grow_faster(figures: list[tuple[float, float]]) -> None:
    ladder = rungs(*figures)
    if all(f1 < 0.792 for f1, _ in figures):
        with pytest.raises(GateError):
            climb(CONFIG, BASELINE, ladder)
        return
    climbed = climb(CONFIG, BASELINE, ladder)
    taken = [rung for rung in ladder if rung.name in climbed.accepted]
    assert {*climbed.accepted} | {*climbed.refused} == {rung.name for rung in ladder}
    assert all(rung.scores.metrics["f1"] >= 0.792 for rung in taken)
    times = [rung.latency_ms for rung in taken]
    assert times == sorted(set(times), key=lambda ms: -(ms or 0))
