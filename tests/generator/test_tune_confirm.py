"""The rounds at the end of a tuning, where what each setting sustains and how long it takes is known beforehand."""

from __future__ import annotations

import math

from hypothesis import assume, given
from hypothesis import strategies as st
from tritonpress_generator.tune.climb import STEP, Point
from tritonpress_generator.tune.confirm import ROUNDS, Measurer, as_good_before, confirm
from tritonpress_generator.tune.load import Measured

LIMIT_MS = 100.0
AS_IT_IS = {"w.model.delay": (0,)}
COST_S = 600.0
"""Times requests/s: what a measurement takes at least."""


def at(rate: float, p99_ms: float = LIMIT_MS / 2) -> Measured:
    return Measured(rate, p99_ms, p99_ms, p99_ms, p99_ms / 2, 0.0, 1.0, "the world", "")


def point(name: int, rate: float) -> Point:
    return Point({"w.model.delay": (name,)}, at(rate), None)


class World:
    """A machine on which a measurement takes at least `COST_S / rate`, and all that it may take where p99 is near."""

    def __init__(
        self, left_s: float, capacity: float = math.inf, near: bool = False, first_capacity: float = 1.0
    ) -> None:
        self.left_s, self.capacity, self.near, self.first_capacity = left_s, capacity, near, first_capacity
        self.known: dict[tuple[int, str, float], Measured] = {}
        self.measured = 0

    def takes_s(self, number: int, asked: Point) -> float:
        known = (number, str(asked.setting), asked.rate_per_s) in self.known
        return 0.0 if known else COST_S / asked.rate_per_s

    def measure(self, number: int, asked: Point, within_s: float) -> Measured:
        key = number, str(asked.setting), asked.rate_per_s
        if key not in self.known:
            self.measured += 1
            least_s = self.takes_s(number, asked)
            assert within_s >= least_s
            self.left_s -= min(within_s, 3 * least_s) if self.near else least_s
            capacity = self.capacity if asked.setting != AS_IT_IS else self.first_capacity
            self.known[key] = at(asked.rate_per_s, LIMIT_MS * asked.rate_per_s / capacity)
        return self.known[key]

    def confirm(self, first: Point | None, best: Point) -> tuple[Point, int]:
        found, rounds = confirm(first, best, LIMIT_MS, Measurer(self.measure, self.takes_s, lambda: self.left_s))
        return found, len(rounds)


@given(st.floats(-100, 2000), st.floats(5, 200), st.floats(1, 3), st.booleans(), st.booleans(), st.floats(0.5, 1.5))
def test_rounds_end_within_the_time_that_is_left(
    left_s: float, rate: float, gain: float, near: bool, only: bool, capacity: float
) -> None:
    first, best = None if only else point(0, rate), point(1, rate * gain)
    # Both are asked for what the best is said to sustain.
    pair_s = COST_S / best.rate_per_s * (1 if first is None else 2)
    # Neither more nor less by rounding.
    assume(abs(left_s / pair_s - round(left_s / pair_s)) > 1e-6)
    world = World(left_s, capacity=capacity * best.rate_per_s, near=near)
    found, rounds = world.confirm(first, best)
    assert world.left_s >= min(left_s, -1e-6)
    if found is best:
        # As many as there is time for.
        assert rounds == min(ROUNDS, max(0, int(left_s / pair_s)))


def test_what_has_won_by_chance_is_asked_for_less_where_there_is_time() -> None:
    first, best = point(0, 50.0), point(1, 100.0)
    lower = best.rate_per_s / STEP
    found, rounds = World(1000.0, capacity=1.001 * lower).confirm(first, best)
    assert (found.rate_per_s, rounds) == (lower, ROUNDS)
    # The first rounds take 36 s.
    found, rounds = World(40.0, capacity=1.001 * lower).confirm(first, best)
    assert (found.rate_per_s, rounds) == (best.rate_per_s, ROUNDS)


def test_what_is_known_takes_no_time() -> None:
    first, best = point(0, 50.0), point(1, 100.0)
    world = World(30.0)
    assert world.confirm(first, best) == (best, 2)
    world.left_s = 0.0
    assert world.confirm(first, best) == (best, 2)
    assert world.measured == 4
    world.left_s = 20.0
    assert world.confirm(first, best) == (best, ROUNDS)
    assert world.measured == 6


def test_both_are_held_to_the_same_rate() -> None:
    first, best = point(0, 50.0), point(1, 100.0)
    for first_capacity, none_gained in ((99.0, False), (101.0, True)):
        world = World(1000.0, first_capacity=first_capacity)
        _, rounds = confirm(first, best, LIMIT_MS, Measurer(world.measure, world.takes_s, lambda: 1000.0))
        assert [(before.rate_per_s, after.rate_per_s) for before, after in rounds if before] == [(100.0, 100.0)] * 3
        assert as_good_before(rounds, LIMIT_MS) == none_gained


def test_nothing_is_measured_where_nothing_has_won() -> None:
    world = World(1000.0)
    assert world.confirm(point(0, 50.0), point(0, 50.0))[1] == 0
    assert world.measured == 0
