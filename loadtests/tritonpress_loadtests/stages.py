"""The stages of a load test, and the shapes that unroll into stages."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from tritonpress_loadtests.arrivals import Arrivals, ByPieces, ByReplay, Duration, Pieces, Rate, RatedArrivals
from tritonpress_loadtests.settings import Settings

Users = Annotated[int, Field(ge=1, le=10_000)]
_MOST_NAMED = 5  # rates in a label


class Stage(Settings):
    """A load held for a time: users that wait for their answers (closed loop), or a rate that waits for none (open)."""

    users: Users | None = None
    """How many users ask at once; each sends its next request when it has the answer to the last."""
    rate_per_s: Rate | None = None
    """Requests that are due a second, whatever became of those before."""
    arrivals: Arrivals = "poisson"
    """When they are due: poisson, constant, day, {bursts: {size: 10}}, {day: {hourly: […]}}, {replay: {file: …}}, or
    {pieces: {rates_per_s: […], durations: […]}}."""
    duration_s: Duration
    """How long requests are sent, in seconds."""
    name: str = Field(default="", max_length=40)
    """What reports call it, beside its load."""

    @model_validator(mode="after")
    def _has_one_load(self) -> Stage:
        own = isinstance(self.arrivals, ByPieces | ByReplay)
        if (self.users is not None) + (self.rate_per_s is not None) + own != 1:
            raise ValueError(
                "a stage has `users`, or `rate_per_s`, or `arrivals` with rates of their own (replay, pieces): one"
                " of them"
            )
        if self.users is not None and "arrivals" in self.model_fields_set:
            raise ValueError("`arrivals` belongs to a stage with `rate_per_s`; users ask when they have their answer")
        return self

    @property
    def is_open(self) -> bool:
        """Whether requests are sent by a schedule."""
        return self.users is None

    @property
    def pieces(self) -> Pieces | None:
        """The parts of a rate that changes; None of any other stage."""
        return self.arrivals.pieces if isinstance(self.arrivals, ByPieces) else None

    @property
    def due(self) -> float:
        """How many requests are due on average; 0 of users, and of a replay, who do not say."""
        rate_per_s = self.pieces.mean_per_s if self.pieces else self.rate_per_s or 0.0
        return rate_per_s * self.duration_s

    @property
    def label(self) -> str:
        """The load in a few words."""
        if self.users is not None:
            load = f"{self.users} user{'' if self.users == 1 else 's'}"
        elif self.pieces is not None:
            load = ", ".join(f"{rate:g}/s" for rate in self.pieces.rates_per_s[:_MOST_NAMED])
            load += ", …" if len(self.pieces.rates_per_s) > _MOST_NAMED else ""
        elif self.rate_per_s is None:
            load = "replay"
        else:
            kind = self.arrivals if isinstance(self.arrivals, str) else next(iter(self.arrivals.model_dump()))
            load = f"{self.rate_per_s:g}/s" + ("" if kind == "poisson" else f" {kind}")
        return f"{self.name}: {load}" if self.name else load


class Step(Settings):
    """Rates (or numbers of users) one after the other."""

    rates_per_s: tuple[Rate, ...] = ()
    """Of the stages in an open loop, behind those of `users`."""
    users: tuple[Users, ...] = ()
    """Of the stages in a closed loop."""
    arrivals: RatedArrivals = "poisson"
    """As of a stage."""
    duration_s: Duration
    """Of each stage, in seconds."""

    @model_validator(mode="after")
    def _has_steps(self) -> Step:
        if not self.rates_per_s and not self.users:
            raise ValueError("`step` needs `rates_per_s` or `users`")
        return self

    def stages(self) -> list[Stage]:
        """Returns a stage a number of users, then one a rate."""
        closed = [Stage(users=users, duration_s=self.duration_s) for users in self.users]
        opened = [
            Stage(rate_per_s=rate, arrivals=self.arrivals, duration_s=self.duration_s) for rate in self.rates_per_s
        ]
        return closed + opened


class Spike(Settings):
    """A base rate, a peak, and the base rate again, which shows whether and how fast the server recovers."""

    base_per_s: Rate
    """The rate before and after the peak."""
    peak_per_s: Rate
    """The rate of the peak."""
    base_s: Duration = 20.0
    """How long the base rate is held, before and after, in seconds."""
    peak_s: Duration = 5.0
    """How long the peak is held, in seconds."""

    def stages(self) -> list[Stage]:
        """Returns one stage: what the peak leaves waiting must be there when the base rate begins again."""
        durations = (self.base_s, self.peak_s, self.base_s)
        pieces = Pieces(rates_per_s=(self.base_per_s, self.peak_per_s, self.base_per_s), durations=durations)
        return [Stage(name="spike", arrivals=ByPieces(pieces=pieces), duration_s=sum(durations))]


class Soak(Settings):
    """One rate for long, in equal parts, so that what creeps (memory, latency) shows between the first and the last."""

    rate_per_s: Rate
    """The rate."""
    duration_s: Duration
    """Of all parts together, in seconds."""
    parts: int = Field(default=4, ge=2, le=1000)
    """How many stages it is shown as."""
    arrivals: RatedArrivals = "poisson"
    """As of a stage."""

    def stages(self) -> list[Stage]:
        """Returns the parts."""
        each_s = self.duration_s / self.parts
        return [
            Stage(name=f"part {part + 1}", rate_per_s=self.rate_per_s, arrivals=self.arrivals, duration_s=each_s)
            for part in range(self.parts)
        ]


class Breakpoint(Settings):
    """A ramp that doubles until the SLO is missed, then a binary search for the highest rate that keeps it."""

    from_per_s: Rate
    """The first rate; it must keep the SLO."""
    to_per_s: Rate
    """Not exceeded; a server that keeps the SLO here has its breakpoint above."""
    duration_s: Duration = 15.0
    """Of each trial."""
    precision: float = Field(default=0.05, gt=0, le=0.5)
    """The search ends where the two rates that enclose the breakpoint differ by this share."""
    arrivals: RatedArrivals = "poisson"
    """As of a stage."""

    @model_validator(mode="after")
    def _rises(self) -> Breakpoint:
        if self.from_per_s >= self.to_per_s:
            raise ValueError(f"`from_per_s` must be below `to_per_s`, got {self.from_per_s:g} and {self.to_per_s:g}")
        return self

    def next_stage(self, trials: list[tuple[float, bool]]) -> Stage | None:
        """Returns the next trial, or None at the end.

        Args:
            trials: The rates tried so far, and whether each kept the SLO.
        """
        rate = self._next_rate(trials)
        if rate is None:
            return None
        return Stage(
            name=f"trial {len(trials) + 1}", rate_per_s=rate, arrivals=self.arrivals, duration_s=self.duration_s
        )

    def _next_rate(self, trials: list[tuple[float, bool]]) -> float | None:
        kept, missed = bounds(trials)
        if missed is None:
            if kept is None:
                return self.from_per_s
            return None if kept >= self.to_per_s else min(2 * kept, self.to_per_s)
        if kept is None:
            # Even the first rate was too much: go down, but not for ever.
            return missed / 2 if missed > self.from_per_s / 64 else None
        return (missed * kept) ** 0.5 if missed / kept > 1 + self.precision else None


class Shape(Settings):
    """A load's course over time; exactly one."""

    step: Step | None = None
    """Stages one after the other."""
    spike: Spike | None = None
    """A peak between two times of a base rate."""
    soak: Soak | None = None
    """One rate for long."""
    recovery: Spike | None = None
    """A spike whose time to recover is measured against the SLO's `p99_ms` and `error_rate`."""
    breakpoint: Breakpoint | None = None
    """The highest rate that keeps the SLO is looked for."""

    @model_validator(mode="after")
    def _is_one(self) -> Shape:
        if sum(getattr(self, name) is not None for name in Shape.model_fields) != 1:
            raise ValueError(f"`shape` must be one of {', '.join(Shape.model_fields)}")
        return self

    def fixed_stages(self) -> list[Stage]:
        """Returns the stages that are known beforehand; a search for a breakpoint has none."""
        return [
            stage
            for part in (self.step, self.spike, self.soak, self.recovery)
            if part is not None
            for stage in part.stages()
        ]


def bounds(trials: list[tuple[float, bool]]) -> tuple[float | None, float | None]:
    """Returns the highest rate that kept the SLO below every miss, and the lowest that missed it."""
    missed = min((rate for rate, kept in trials if not kept), default=None)
    kept = max((rate for rate, kept in trials if kept and (missed is None or rate < missed)), default=None)
    return kept, missed
