"""Measurements of a tuning within its budget, and what it has found."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tritonpress_client import InvalidInputError, Options, ServerError

from tritonpress_generator.errors import InputError, SloError
from tritonpress_generator.journal import Journal
from tritonpress_generator.progress import Progress
from tritonpress_generator.tune import knobs as turning
from tritonpress_generator.tune.bench import Bench
from tritonpress_generator.tune.climb import Climb, OverBudgetError, Point, Tried
from tritonpress_generator.tune.confirm import ROUNDS, Measurer, Round, as_good_before, confirm, mostly_kept
from tritonpress_generator.tune.knobs import Configs, Knob, Setting
from tritonpress_generator.tune.load import Measured, Traffic

_CLOSING_SHARE = 0.4
"""Of the budget, at most: kept for the rounds at the end."""


@dataclass(frozen=True)
class TuneConfig:
    """What a tuning can be told."""

    p99_ms: float
    """The limit on the latency's 99th percentile."""
    budget_minutes: float = 10.0
    scenario: Path | None = None
    """A load test's, whose requests are sent; default: the builds' golden requests."""
    server: str | None = None
    """`HOST:PORT` of a Triton that serves the repository and takes orders; default: an embedded one."""
    connection: Options | None = None
    """How that one is trusted."""
    security: Sequence[str] = ()
    """The arguments of `tritonpress-load` that say the same."""
    cores: int | None = None
    """Of the machine that serves; default: this one's."""
    cache: bool = False
    """Whether the response cache is tried."""

    def check(self) -> None:
        """Raises InputError for a value out of range."""
        for name, value in (("--p99-ms", self.p99_ms), ("--budget-minutes", self.budget_minutes)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be a number above 0, got {value:g}")
        if self.cores is not None and self.cores < 1:
            raise InputError(f"--cores must be 1 or more, got {self.cores}")


@dataclass(frozen=True)
class Found:
    """What a tuning has found."""

    limit_ms: float
    traffic: str
    """Whose requests they were."""
    knobs: list[Knob]
    first: Point | None
    """The configs as they are; None where they keep the limit at no rate."""
    best: Point
    rounds: list[Round]
    """Both at the best's rate, in turn; fewer where the time was short."""
    tried: list[Tried]
    measured: list[tuple[Setting, Measured]]
    """All measurements."""
    complete: bool
    """Whether nothing more was to be gained; else the time was over."""
    minutes: float
    manifests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of the builds that were tuned, by workload."""
    configs: Configs = field(default_factory=dict)
    """Theirs, by name, with what is better; as they were where nothing is."""
    changed: frozenset[str] = frozenset()
    """The names of those that differ."""

    @property
    def confirmed(self) -> bool:
        """Whether the best has kept the limit in most rounds, and in more than the configs as they are."""
        return mostly_kept(self.rounds, self.limit_ms) and not as_good_before(self.rounds, self.limit_ms)

    @property
    def gain(self) -> float | None:
        """The best's rate over that of the configs as they are; None where those keep the limit at none."""
        return None if self.first is None else self.best.rate_per_s / self.first.rate_per_s


class Session:
    """A tuning in hand: what it measures is in the journal, and within the budget."""

    def __init__(
        self,
        config: TuneConfig,
        knobs: list[Knob],
        traffic: Traffic,
        journal: Journal,
        served: Bench,
        say: Progress,
        *,
        began: float,
    ) -> None:
        """Takes `began`, the moment from which the budget counts (`time.monotonic`)."""
        self._config, self._knobs, self._traffic = config, knobs, traffic
        self._journal, self._bench, self._say = journal, served, say
        self._began = began
        self._loading_s = 0.0
        self._measured: list[tuple[Setting, Measured]] = []

    def run(self) -> Found:
        """Searches, and measures the best in turn with the configs as they are.

        Raises:
            InputError: The load test refuses the scenario, or the budget is too short for one measurement.
            SloError: Nothing keeps the limit.
            TritonpressError: The server does not answer; what was measured before stays known.
        """
        now: Setting = {knob.key: knob.now for knob in self._knobs}
        climb = Climb(self._measure, self._config.p99_ms, self._most(now))
        climb.run(self._knobs)
        if climb.best is None:
            raise self._nothing(climb)
        measurer = Measurer(self._round, self._round_s, lambda: self._left_s)
        best, rounds = confirm(climb.first, climb.best, self._config.p99_ms, measurer)
        return Found(
            limit_ms=self._config.p99_ms,
            traffic=self._traffic.where,
            knobs=self._knobs,
            first=climb.first,
            best=best,
            rounds=rounds,
            tried=climb.tried,
            measured=self._measured,
            complete=climb.complete,
            minutes=self._spent_s / 60,
        )

    @property
    def _spent_s(self) -> float:
        return time.monotonic() - self._began + self._journal.replayed_s

    @property
    def _left_s(self) -> float:
        return self._config.budget_minutes * 60 - self._spent_s

    def _takes_s(self, rate: float) -> float:
        return self._loading_s + self._traffic.takes_s(rate)

    def _most(self, now: Setting) -> float:
        """Returns what the configs as they are give at most, in requests/s."""

        def compute() -> dict[str, Any]:
            self._bench.serve(now)
            return {"per_s": self._traffic.most(self._bench.url)}

        most = float(self._known("most", {"what": "most"}, compute)["per_s"])
        if not most:
            raise InputError("the server has answered no request; see its log")
        return most

    def _measure(self, setting: Setting, rate: float, before: int) -> Measured:
        key = f"{json.dumps(setting, sort_keys=True)} {rate:.6g}" + (f" again {before}" if before else "")
        known = self._journal.get(key) is not None
        within_s = self._left_s - self._closing_s(rate)
        if not known and self._takes_s(rate) > within_s:
            if not self._measured:
                raise InputError(
                    f"--budget-minutes {self._config.budget_minutes:g} is too short for one measurement, which "
                    f"takes {self._takes_s(rate):.0f} s, after {self._spent_s:.0f} s to start; raise it"
                )
            raise OverBudgetError
        return self._at(key, setting, rate, turning.words(self._knobs, setting), within_s)

    def _closing_s(self, rate: float) -> float:
        """Returns what is left for the rounds at the end, of which there are none unless something keeps the limit."""
        if not any(at.keeps(self._config.p99_ms) for _, at in self._measured):
            return 0.0
        return min(
            ROUNDS * (2 * self._takes_s(rate) + self._traffic.timeout_s),
            self._config.budget_minutes * 60 * _CLOSING_SHARE,
        )

    def _at(self, key: str, setting: Setting, rate: float, words: str, within_s: float) -> Measured:
        began = time.monotonic()

        def compute() -> dict[str, Any]:
            try:
                self._bench.serve(setting)
            except (InvalidInputError, ServerError) as exc:
                # What else ends a call, such as a server that is away, says nothing of the setting.
                return asdict(_refused(rate, str(exc)))
            loading_s = time.monotonic() - began
            self._loading_s = max(self._loading_s, loading_s)
            left_s = within_s - loading_s
            return asdict(self._traffic.at(self._bench.url, rate, self._config.p99_ms, within_s=left_s))

        budget = f"{self._spent_s / 60:.1f} of {self._config.budget_minutes:g} min"
        known = self._known(key, {"setting": dict(setting), "rate_per_s": rate}, compute, f"[{budget}] {words}")
        measured = Measured(**{name: value for name, value in known.items() if name != "seconds"})
        verdict = "kept" if measured.keeps(self._config.p99_ms) else measured.fault or "missed"
        self._say.found(f"{rate:.0f}/s, p99 {measured.p99_ms:.0f} ms, {verdict}")
        self._measured.append((setting, measured))
        return measured

    def _known(
        self, key: str, about: Mapping[str, Any], compute: Callable[[], dict[str, Any]], said: str = "warm-up"
    ) -> dict[str, Any]:
        known = self._journal.get(key)
        if known is None:
            self._say.stage(said)
            began = time.monotonic()
            known = compute()
            known["seconds"] = time.monotonic() - began
            self._journal.put(key, about, known)
        return known

    def _round(self, number: int, point: Point, within_s: float) -> Measured:
        now = {knob.key: knob.now for knob in self._knobs}
        words = f"round {number}, {'as it is' if point.setting == now else 'best'}"
        return self._at(_round_key(number, point), point.setting, point.rate_per_s, words, within_s)

    def _round_s(self, number: int, point: Point) -> float:
        if self._journal.get(_round_key(number, point)) is not None:
            return 0.0
        now = {knob.key: knob.now for knob in self._knobs}
        # Asked for more than they sustain, the configs as they are leave requests that are waited for.
        return self._takes_s(point.rate_per_s) + (self._traffic.timeout_s if point.setting == now else 0.0)

    def _nothing(self, climb: Climb) -> SloError:
        at, setting = climb.nearest, climb.nearest_setting
        if at is None or setting is None:
            return SloError("nothing was measured before the time was over; raise --budget-minutes")
        tried = "no config does" if climb.complete else "no config did before the time was over"
        return SloError(
            f"p99 must stay within {self._config.p99_ms:g} ms, {tried}: the nearest is {at.p99_ms:.1f} ms at "
            f"{at.rate_per_s:.3g} requests/s with {turning.words(self._knobs, setting)}, p50 {at.p50_ms:.1f} ms; what "
            f"binds there is {at.binds}; raise --p99-ms, or compress more"
        )


def _round_key(number: int, point: Point) -> str:
    return f"round {number} {json.dumps(point.setting, sort_keys=True)} {point.rate_per_s:.6g}"


def _refused(rate: float, why: str) -> Measured:
    """Returns what stands for a setting that the server cannot load."""
    return Measured(rate, math.inf, math.inf, math.inf, math.inf, 1.0, 0.0, f"the server, which refuses it: {why}", "")
