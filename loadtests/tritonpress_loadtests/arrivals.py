"""When requests are due in an open loop: schedules in seconds from the stage's start, made before anything is sent.

Clocks of arrivals that are not uniform are made by time rescaling: a process of unit rate is run through the inverse of
the cumulative rate (Cinlar 1975), which is exact for rates that change.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.settings import Settings

Rate = Annotated[float, Field(gt=0, le=1_000_000)]
LONGEST_S = 7 * 86_400
Duration = Annotated[float, Field(gt=0, le=LONGEST_S)]

Schedule = npt.NDArray[np.float64]
"""(requests,): when each is due, in s from the stage's start, ascending."""

# The shares of a day's traffic by hour that a day's curve has by default: quiet at night, a peak in the evening.
_NIGHT_AND_MORNING = (0.35, 0.25, 0.2, 0.18, 0.2, 0.3, 0.5, 0.75, 1.0, 1.15, 1.2, 1.2)
_AFTERNOON_AND_EVENING = (1.15, 1.15, 1.15, 1.2, 1.3, 1.45, 1.65, 1.85, 1.9, 1.6, 1.1, 0.65)
_DAY: tuple[float, ...] = _NIGHT_AND_MORNING + _AFTERNOON_AND_EVENING
_LEAST_PIECE = 1 / 500  # of the stage, so that windows of a fourth of the shortest piece are not without number
_BLOCK = 10_000


class Bursts(Settings):
    """Groups of requests that are due at one moment; the groups come by a Poisson process."""

    size: int = Field(ge=2, le=100_000)
    """Requests a group; the rate of requests stays the stage's."""


class Day(Settings):
    """A day's curve in the stage's duration; the stage's rate is the day's mean."""

    hourly: tuple[float, ...] = _DAY
    """Relative rates of equal parts of the day, joined by straight lines."""

    @model_validator(mode="after")
    def _is_a_curve(self) -> Day:
        if len(self.hourly) < 2 or min(self.hourly) < 0 or not 0 < sum(self.hourly) < float("inf"):
            raise ValueError(f"`hourly` must be at least two finite rates of 0 or more, got {self.hourly}")
        return self


class Replay(Settings):
    """Recorded moments, one a line in seconds; the first is the start, and the stage's rate is not asked for."""

    file: str
    """Relative to the scenario's file."""
    speed: float = Field(default=1.0, gt=0, le=1e6)
    """2 replays in half the time."""


class Pieces(Settings):
    """Rates one after the other without a break, so that what waits at the end of one is there in the next."""

    rates_per_s: tuple[Rate, ...] = Field(min_length=2, max_length=200)
    """Poisson processes of these rates; the stage's own is not asked for."""
    durations: tuple[Duration, ...]
    """How long each is held, relative to the others; together they are the stage's duration."""

    @model_validator(mode="after")
    def _has_a_duration_for_each(self) -> Pieces:
        if len(self.durations) != len(self.rates_per_s):
            raise ValueError(f"`durations` must be {len(self.rates_per_s)}, one a rate, got {len(self.durations)}")
        if min(self.durations) < _LEAST_PIECE * sum(self.durations):
            raise ValueError(
                f"the shortest part must be at least a {1 / _LEAST_PIECE:.0f}th of the whole, got"
                f" {min(self.durations):g} of {sum(self.durations):g}; lengthen it, or shorten the others"
            )
        return self

    @property
    def mean_per_s(self) -> float:
        """The mean rate."""
        return float(np.average(self.rates_per_s, weights=self.durations))

    def edges_s(self, duration_s: float) -> list[float]:
        """Returns the moments at which pieces of a stage begin and end, one more than there are rates."""
        edges = np.cumsum([0.0, *self.durations])
        moments: list[float] = (edges / edges[-1] * duration_s).tolist()
        return moments


class ByBursts(Settings):
    """`{bursts: …}`."""

    bursts: Bursts
    """Groups at one moment."""


class ByDay(Settings):
    """`{day: …}`."""

    day: Day
    """A day's curve."""


class ByReplay(Settings):
    """`{replay: …}`."""

    replay: Replay
    """Recorded moments."""


class ByPieces(Settings):
    """`{pieces: …}`."""

    pieces: Pieces
    """Rates one after the other."""


_KINDS = ("bursts", "day", "pieces", "replay")


def _kind(value: Any) -> str:
    """Returns the tag of what is meant, so that an error is told of it alone; in brackets, since it is no key."""
    keys = list(value) if isinstance(value, dict) else [name for name in _KINDS if hasattr(value, name)]
    return f"[{keys[0]}]" if len(keys) == 1 and keys[0] in _KINDS else "[name]"


Arrivals = Annotated[
    Annotated[Literal["poisson", "constant", "day"], Tag("[name]")]
    | Annotated[ByBursts, Tag("[bursts]")]
    | Annotated[ByDay, Tag("[day]")]
    | Annotated[ByPieces, Tag("[pieces]")]
    | Annotated[ByReplay, Tag("[replay]")],
    Discriminator(_kind),
]


def _goes_by_a_rate(arrivals: Arrivals) -> Arrivals:
    if isinstance(arrivals, ByPieces | ByReplay):
        raise ValueError("must go by a rate that is given; a replay, and pieces, have their own and belong in `stages`")
    return arrivals


RatedArrivals = Annotated[Arrivals, AfterValidator(_goes_by_a_rate)]
"""Those of a shape that has rates."""


def schedule(arrivals: Arrivals, rate_per_s: float, duration_s: float, *, seed: str, folder: Path) -> Schedule:
    """Returns the moments at which requests are due.

    Args:
        arrivals: The process.
        rate_per_s: The mean rate; a replay, and pieces, have their own.
        duration_s: No request is due at or after it.
        seed: Fixes what is drawn.
        folder: What a replay's file is relative to.

    Raises:
        ScenarioError: A replay's file is unreadable or holds no moment.
    """
    if isinstance(arrivals, ByReplay):
        due_s: Schedule = replayed(folder / arrivals.replay.file) / arrivals.replay.speed
        return due_s[due_s < duration_s]
    chance = np.random.default_rng(list(seed.encode()))
    if isinstance(arrivals, ByPieces):
        return _in_pieces(arrivals.pieces, duration_s, chance)
    if arrivals == "constant":
        return np.arange(np.ceil(rate_per_s * duration_s - 1e-9)) / rate_per_s
    if isinstance(arrivals, ByBursts):
        size = arrivals.bursts.size
        return np.repeat(_poisson(rate_per_s / size, duration_s, chance), size)
    due_s = _poisson(rate_per_s, duration_s, chance)
    if arrivals == "poisson":
        return due_s
    hourly = arrivals.day.hourly if isinstance(arrivals, ByDay) else _DAY
    return _rescaled(due_s, np.array(hourly), duration_s)


def moments(due_s: Schedule) -> Iterator[float]:
    """Yields the moments one by one; as a list all of them would take four times their memory."""
    for start in range(0, len(due_s), _BLOCK):
        yield from due_s[start : start + _BLOCK].tolist()


def peak_rate_per_s(due_s: Schedule, width_s: float = 1.0) -> float:
    """Returns the most requests due within any `width_s`, a second."""
    if not len(due_s):
        return 0.0
    within = np.searchsorted(due_s, due_s + width_s) - np.arange(len(due_s))
    return float(within.max() / width_s)


def replayed(path: Path) -> Schedule:
    """Returns the moments of a file in seconds from its first, ascending.

    Raises:
        ScenarioError: It is unreadable, holds no moment, or a line is no finite number.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as exc:
        raise ScenarioError(f"cannot read `replay.file` {path}: {exc}; write one moment in seconds a line") from exc
    moments = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            moments.append(float(line))
        except ValueError as exc:
            raise ScenarioError(f"{path}:{number} must be a moment in seconds, got {line!r}") from exc
    if not moments or not np.isfinite(moments).all():
        raise ScenarioError(f"{path} must hold finite moments in seconds, one a line; got {len(moments)}")
    due_s: Schedule = np.sort(np.array(moments))
    due_s -= due_s[0]
    return due_s


def _poisson(rate_per_s: float, duration_s: float, chance: np.random.Generator) -> Schedule:
    """Returns the moments of a Poisson process: as many as a Poisson draw says, spread evenly (Lewis 1979)."""
    return np.sort(chance.uniform(0, duration_s, chance.poisson(rate_per_s * duration_s)))


def _in_pieces(pieces: Pieces, duration_s: float, chance: np.random.Generator) -> Schedule:
    """Returns the moments of a Poisson process whose rate is constant in each piece."""
    edges_s = pieces.edges_s(duration_s)
    expected = np.concatenate([[0.0], np.cumsum(np.diff(edges_s) * np.array(pieces.rates_per_s))])
    moved: Schedule = np.interp(_poisson(1.0, float(expected[-1]), chance), expected, edges_s)
    return moved


def _rescaled(due_s: Schedule, hourly: Schedule, duration_s: float) -> Schedule:
    """Returns the moments moved so that their rate follows the curve, which ends where it began."""
    knots = np.linspace(0, duration_s, 60 * len(hourly) + 1)
    rate = np.interp(knots, np.linspace(0, duration_s, len(hourly) + 1), np.append(hourly, hourly[0]))
    cumulative = np.concatenate([[0], np.cumsum((rate[1:] + rate[:-1]) / 2)])
    moved: Schedule = np.interp(due_s, cumulative / cumulative[-1] * duration_s, knots)
    return moved
