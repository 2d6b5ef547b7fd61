"""The end of a tuning: what has won, and the configs as they are, measured in turn in the time that is left.

Both are asked for what the best is said to sustain: it must keep the limit there, and they must not. A machine that
drifts is in both, and what has won by chance is found out. Where the time is short there are fewer rounds, and none
that would not end in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tritonpress_generator.tune.climb import STEP, Point
from tritonpress_generator.tune.load import Measured

ROUNDS = 3
_TRIES = 2
"""What misses the limit in most rounds is asked for less, once."""
Round = tuple[Measured | None, Measured]
"""The configs as they are, unless they keep the limit at no rate, and the best, at the same rate."""


@dataclass(frozen=True)
class Measurer:
    """Who measures, and how much time there is."""

    measure: Callable[[int, Point, float], Measured]
    """Returns what a point gives in the round of that number; may take so many seconds."""
    takes_s: Callable[[int, Point], float]
    """How long that takes at least; 0 where it is known."""
    left_s: Callable[[], float]
    """Until the time is over."""


def confirm(first: Point | None, best: Point, limit_ms: float, measurer: Measurer) -> tuple[Point, list[Round]]:
    """Returns the best, at a rate that it keeps in turn with the configs as they are, and those rounds.

    Args:
        first: The configs as they are; None where they keep the limit at no rate.
        best: What has won.
        limit_ms: The limit on p99.
        measurer: See there.
    """
    if first is not None and first.setting == best.setting:
        return best, []
    rounds = _rounds(first, best, measurer, tries=_TRIES)
    if rounds and not mostly_kept(rounds, limit_ms):
        lower = replace(best, kept=replace(best.kept, rate_per_s=best.rate_per_s / STEP), missed=best.kept)
        if first is None or lower.rate_per_s > first.rate_per_s:
            again = _rounds(first, lower, measurer, tries=1)
            return (lower, again) if again else (best, rounds)
    return best, rounds


def mostly_kept(rounds: Sequence[Round], limit_ms: float) -> bool:
    """Says whether the best has kept the limit in most rounds."""
    return sum(best.keeps(limit_ms) for _, best in rounds) * 2 > len(rounds)


def as_good_before(rounds: Sequence[Round], limit_ms: float) -> bool:
    """Says whether the configs as they are have kept it, at the same rate, in half of the rounds, or as often."""
    before = sum(first is not None and first.keeps(limit_ms) for first, _ in rounds)
    after = sum(best.keeps(limit_ms) for _, best in rounds)
    return bool(before) and (2 * before >= len(rounds) or before >= after)


def _rounds(first: Point | None, best: Point, measurer: Measurer, *, tries: int) -> list[Round]:
    """Returns as many rounds as there is time for; what is left beyond those to come lets them take longer."""
    points = [best] if first is None else [replace(first, kept=replace(first.kept, rate_per_s=best.rate_per_s)), best]
    rounds: list[Round] = []
    for number in range(1, ROUNDS + 1):
        each_s = [measurer.takes_s(number, point) for point in points]
        left_s = max(measurer.left_s(), 0.0)
        if sum(each_s) > left_s:
            break
        share = 1.0
        if sum(each_s):
            to_come = tries * ROUNDS - number + 1
            share = max(1.0, left_s / sum(each_s) / to_come)
        *before, at = (
            measurer.measure(number, point, share * seconds) for point, seconds in zip(points, each_s, strict=True)
        )
        rounds.append((before[0] if before else None, at))
    return rounds
