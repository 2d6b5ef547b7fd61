"""How a tuning searches, where what each setting sustains is known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonpress_generator.tune.climb import STEP, Climb, OverBudgetError
from tritonpress_generator.tune.knobs import Knob, Setting, Value
from tritonpress_generator.tune.load import Measured

LIMIT_MS = 100.0


class World:
    """What each setting sustains, known beforehand."""

    def __init__(self, factors: Mapping[str, Mapping[Value, float]], budget: int) -> None:
        self.factors, self.budget, self.asked = factors, budget, 0

    def capacity(self, setting: Setting) -> float:
        return 100 * prod(self.factors[key][value] for key, value in setting.items())

    def measure(self, setting: Setting, rate: float, before: int) -> Measured:
        if self.asked >= self.budget:
            raise OverBudgetError
        self.asked += 1
        p99_ms = LIMIT_MS * rate / self.capacity(setting)
        return Measured(rate, p99_ms, p99_ms, p99_ms, p99_ms / 2, 0.0, 1.0, "the world", "")


@st.composite
def worlds(draw: st.DrawFn, budget: int = 10_000) -> tuple[World, list[Knob]]:
    knobs, factors = [], {}
    for number in range(draw(st.integers(1, 4))):
        values = tuple((i,) for i in range(draw(st.integers(2, 5))))
        now = draw(st.sampled_from(values))
        knob = Knob("w", "model", f"delay{number}", ("w_model",), now, (now, *(v for v in values if v != now)))
        knobs.append(knob)
        factors[knob.key] = {value: draw(st.floats(0.3, 3.0)) for value in values}
    return World(factors, budget), knobs


@given(worlds(), st.floats(0.1, 10))
def test_finds_the_best_where_knobs_do_not_hang_together(case: tuple[World, list[Knob]], guess: float) -> None:
    world, knobs = case
    now = {knob.key: knob.now for knob in knobs}
    climb = Climb(world.measure, LIMIT_MS, world.capacity(now) * guess)
    climb.run(knobs)
    assert climb.complete
    assert climb.best is not None and climb.first is not None
    # What is found is sustained, and within a step of what its setting sustains.
    assert climb.best.rate_per_s <= world.capacity(climb.best.setting) <= climb.best.rate_per_s * STEP * 1.01
    best = 100 * prod(max(of.values()) for of in world.factors.values())
    # A knob may be left where another value gains less than two steps: one for the rate, one for the race.
    assert climb.best.rate_per_s >= best / (STEP * 1.01) ** (2 * len(knobs))
    assert climb.best.rate_per_s >= climb.first.rate_per_s


@given(worlds(budget=0).flatmap(lambda case: st.tuples(st.just(case), st.integers(0, 40))))
def test_what_is_found_when_the_time_is_over_is_sustained(case: tuple[tuple[World, list[Knob]], int]) -> None:
    (world, knobs), world.budget = case
    climb = Climb(world.measure, LIMIT_MS, world.capacity({knob.key: knob.now for knob in knobs}))
    climb.run(knobs)
    assert world.asked <= world.budget
    if climb.best is not None:
        assert climb.best.rate_per_s <= world.capacity(climb.best.setting)


def test_a_best_that_was_lucky_is_found_out() -> None:
    lucky, other = (0,), (1,)
    knob = Knob("w", "model", "delay", ("w_model",), lucky, (lucky, other))
    capacity = {lucky: 100.0, other: 130.0}
    asked: list[Value] = []

    def measure(setting: Setting, rate: float, before: int) -> Measured:
        asked.append(setting[knob.key])
        # The first figures of one are too good by half.
        luck = 1.5 if setting[knob.key] == lucky and asked.count(lucky) <= 4 else 1.0
        p99_ms = LIMIT_MS * rate / capacity[setting[knob.key]] / luck
        return Measured(rate, p99_ms, p99_ms, p99_ms, p99_ms / 2, 0.0, 1.0, "chance", "")

    climb = Climb(measure, LIMIT_MS, 140.0)
    climb.run([knob])
    assert climb.complete
    assert climb.best is not None and climb.first is not None
    assert climb.best.setting == {knob.key: other}
    assert climb.first.rate_per_s <= 100
    assert 120 < climb.best.rate_per_s <= 130


@given(st.sets(st.integers(0, 12), max_size=4), st.floats(50, 400))
def test_a_hiccup_does_not_make_the_configs_as_they_are_look_worse(hiccups: set[int], start: float) -> None:
    """Measurements of those numbers miss the limit whatever they are of; never the same twice in turn."""
    as_it_is, other = (0,), (1,)
    knob = Knob("w", "model", "delay", ("w_model",), as_it_is, (as_it_is, other))
    capacity = {as_it_is: 200.0, other: 150.0}
    asked: list[tuple[Value, float]] = []

    def measure(setting: Setting, rate: float, before: int) -> Measured:
        hiccup = setting[knob.key] == as_it_is and len(asked) in hiccups and (setting[knob.key], rate) not in asked
        asked.append((setting[knob.key], rate))
        p99_ms = 3 * LIMIT_MS if hiccup else LIMIT_MS * rate / capacity[setting[knob.key]]
        return Measured(rate, p99_ms, p99_ms, p99_ms, p99_ms / 2, 0.0, 1.0, "a hiccup", "")

    climb = Climb(measure, LIMIT_MS, start)
    climb.run([knob])
    assert climb.complete
    assert climb.first is not None and climb.best is not None
    assert 200 / STEP / 1.01 <= climb.first.rate_per_s <= 200
    assert climb.best.setting == {knob.key: as_it_is}


@pytest.mark.parametrize("budget", range(2, 30))
def test_what_was_found_behind_a_hiccup_counts_where_the_time_ends(budget: int) -> None:
    knob = Knob("w", "model", "delay", ("w_model",), (0,), ((0,), (1,)))
    asked: list[tuple[Value, float]] = []

    def measure(setting: Setting, rate: float, before: int) -> Measured:
        if len(asked) >= budget:
            raise OverBudgetError
        asked.append((setting[knob.key], rate))
        p99_ms = 3 * LIMIT_MS if len(asked) == 1 else LIMIT_MS * rate / 200
        return Measured(rate, p99_ms, p99_ms, p99_ms, p99_ms / 2, 0.0, 1.0, "a hiccup", "")

    climb = Climb(measure, LIMIT_MS, 100.0)
    climb.run([knob])
    assert climb.first is not None
    assert climb.first.rate_per_s == max(rate for value, rate in asked[1:] if value == (0,) and rate <= 200)


def test_tries_each_knob_alone_where_the_configs_as_they_are_keep_the_limit_at_no_rate() -> None:
    slow, quick = (0,), (1,)
    knob = Knob("w", "model", "delay", ("w_model",), slow, (slow, quick))
    floor = {slow: 150.0, quick: 20.0}

    def measure(setting: Setting, rate: float, before: int) -> Measured:
        p99_ms = floor[setting[knob.key]] + rate
        return Measured(rate, p99_ms, p99_ms, p99_ms, p99_ms / 2, 0.0, 1.0, "the floor", "")

    climb = Climb(measure, LIMIT_MS, 200.0)
    climb.run([knob])
    assert climb.first is None
    assert climb.best is not None and climb.best.setting == {knob.key: quick}
    assert 80 / STEP / 1.01 <= climb.best.rate_per_s <= 80
    floor[quick] = 101.0
    climb = Climb(measure, LIMIT_MS, 200.0)
    climb.run([knob])
    assert climb.best is None and climb.nearest is not None
    assert (climb.nearest_setting, climb.nearest.p99_ms < 110) == ({knob.key: quick}, True)
