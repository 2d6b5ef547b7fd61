"""The search: each knob's values in turn, each held to a rate that is higher than what the best so far sustains.

A value that is worth nothing is given up after one measurement, since it is asked at once for more than the best has
given; one that sustains it climbs until it does not. This is a coordinate ascent with racing (Maron and Moore 1993,
"Hoeffding races": what cannot win any more is not measured further), on a figure that a load test gives: the highest
rate whose 99th percentile stays within the limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tritonpress_generator.tune.knobs import Knob, Setting
from tritonpress_generator.tune.load import Measured

STEP = 1.05
"""A value must sustain this multiple of the best rate: less cannot be told from noise."""
_STRIDE = 1.15
_DOWN = 0.5
_LOWEST_SHARE = 1 / 32


class OverBudgetError(Exception):
    """There is no time for another measurement."""


@dataclass(frozen=True)
class Point:
    """A setting with the highest rate at which it kept the limit."""

    setting: Setting
    kept: Measured
    missed: Measured | None
    """The lowest rate at which it did not; None if none was tried."""

    @property
    def rate_per_s(self) -> float:
        """The rate that was kept."""
        return self.kept.rate_per_s


@dataclass(frozen=True)
class Tried:
    """A value that was tried."""

    knob: Knob
    setting: Setting
    point: Point | None
    """What became of it; None if it did not sustain more than the best before it."""
    at: Measured
    """What decided."""


@dataclass
class Climb:
    """The search in hand; what it has found so far is there at every moment, also when it runs out of time.

    Attributes:
        measure: Returns what a setting gives at a rate, asked so often before; raises `OverBudgetError` when there is
            no time for it.
        limit_ms: The limit on p99.
        start: The rate at which the first setting is asked, 1/s: what it sustains at most, whatever the latency.
    """

    measure: Callable[[Setting, float, int], Measured]
    limit_ms: float
    start: float
    first: Point | None = None
    """The setting as it was."""
    best: Point | None = None
    tried: list[Tried] = field(default_factory=list)
    nearest: Measured | None = None
    """Where nothing has kept the limit: what came nearest."""
    nearest_setting: Setting | None = None
    complete: bool = False
    """Whether no knob can be turned any more to gain; else the time was over."""
    _raced: list[Setting] = field(default_factory=list)
    """What has lost against the best as it is known now."""
    _asked: Counter[tuple[str, float]] = field(default_factory=Counter)

    def run(self, knobs: Sequence[Knob]) -> None:
        """Searches until nothing is gained any more, or there is no time left."""
        now = {knob.key: knob.now for knob in knobs}
        try:
            self.first = self.best = self._breakpoint(now, self.start)
            if self.first is None:
                self._begin_elsewhere(now, knobs)
            else:
                self.first = self.best = self._surely_highest(self.first)
            while self._round(knobs):
                pass
            self.complete = True
        except OverBudgetError:
            return

    def _begin_elsewhere(self, now: Setting, knobs: Sequence[Knob]) -> None:
        """Tries each knob alone at a low rate: the setting as it is misses the limit at any."""
        for knob in knobs:
            for value in knob.values:
                if self.best is None and value != now[knob.key]:
                    setting = {**now, knob.key: value}
                    self.best = self._breakpoint(setting, self.start * _LOWEST_SHARE)
                    at = self.best.kept if self.best else self.nearest
                    if at is not None:
                        self.tried.append(Tried(knob, setting, self.best, at))

    def _round(self, knobs: Sequence[Knob]) -> bool:
        """Turns each knob once; returns whether one of them gained, or the best is worth less than it was."""
        changed = False
        for knob in knobs:
            gained = False
            for value in knob.values:
                if self.best is None:
                    return False
                setting = {**self.best.setting, knob.key: value}
                if setting != self.best.setting and setting not in self._raced:
                    gained |= self._race(knob, setting, self.best.rate_per_s)
            if not gained and self.best is not None:
                changed |= self._drifted(self.best)
            changed |= gained
        return changed

    def _drifted(self, best: Point) -> bool:
        """Measures the best once more where nothing has beaten it; returns whether it is worth less than it was.

        A machine that slows down, or a lucky measurement, would let it win for ever.
        """
        if not self._raced or self._at(best.setting, best.rate_per_s).keeps(self.limit_ms):
            return False
        again = self._at(best.setting, best.rate_per_s)
        if again.keeps(self.limit_ms):
            return False
        self.best = self._breakpoint(best.setting, best.rate_per_s * _DOWN, again) or best
        if self.first is not None and self.first.setting == best.setting:
            self.first = self.best = self._surely_highest(self.best)
        self._raced = []
        return self.best is not best

    def _race(self, knob: Knob, setting: Setting, rate: float) -> bool:
        """Holds a setting to more than the best gives; returns whether it is the best now."""
        at = self._at(setting, rate * STEP)
        if not at.keeps(self.limit_ms):
            self._raced.append(setting)
            self.tried.append(Tried(knob, setting, None, at))
            return False
        if self.best is not None:
            self._raced.append(self.best.setting)
        self.best = self._highest(setting, at)
        self.tried.append(Tried(knob, setting, self.best, self.best.kept))
        return True

    def _highest(self, setting: Setting, kept: Measured, missed: Measured | None = None) -> Point:
        """Returns the highest rate that is kept, between one that is and one that is not, or above."""
        try:
            while missed is None or missed.rate_per_s / kept.rate_per_s > STEP * 1.001:
                between = kept.rate_per_s * _STRIDE if missed is None else (missed.rate_per_s * kept.rate_per_s) ** 0.5
                at = self._at(setting, between)
                if at.keeps(self.limit_ms):
                    kept = at
                else:
                    missed = at
        except OverBudgetError:
            # What was found of it counts; the next measurement ends the search.
            pass
        return Point(setting, kept, missed)

    def _surely_highest(self, point: Point) -> Point:
        """Returns the highest rate that is kept, above which one was missed twice: a hiccup misses once.

        For the configs as they are: what they are thought to sustain too little would be said to be gained.
        """
        while point.missed is not None:
            try:
                again = self._at(point.setting, point.missed.rate_per_s)
            except OverBudgetError:
                # As in `_highest`.
                break
            if not again.keeps(self.limit_ms):
                break
            point = self._highest(point.setting, again)
        return point

    def _breakpoint(self, setting: Setting, rate: float, missed: Measured | None = None) -> Point | None:
        """Returns the highest rate that is kept, from any, below one that is not; None if even a low one is not."""
        while rate >= self.start * _LOWEST_SHARE * 0.999:
            at = self._at(setting, rate)
            if at.keeps(self.limit_ms):
                return self._highest(setting, at, missed)
            if self.nearest is None or at.p99_ms < self.nearest.p99_ms:
                self.nearest, self.nearest_setting = at, setting
            missed, rate = at, rate * _DOWN
        return None

    def _at(self, setting: Setting, rate: float) -> Measured:
        """Measures, and says how often the same was measured before."""
        place = str(sorted(setting.items())), rate
        self._asked[place] += 1
        return self.measure(setting, rate, self._asked[place] - 1)
