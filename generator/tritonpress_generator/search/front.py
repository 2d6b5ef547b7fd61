"""Which of several points are the best when more than one thing counts; smaller is better in each."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = Sequence[float]
_SAME = 1.02
"""Times that are nearer to each other than this are noise: on a machine that others use, rounds differ by more."""


def steps(figure: float) -> float:
    """Returns a positive figure in steps of 2 % each, so that figures that noise alone tells apart are mostly equal."""
    return float(round(math.log(figure) / math.log(_SAME)))


def dominates(one: Point, other: Point) -> bool:
    """Says whether `one` is nowhere worse than `other`, and somewhere better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def front(points: Sequence[Point]) -> list[int]:
    """Returns which of `points` no other dominates, ascending; of points that are equal, the first."""
    seen: set[tuple[float, ...]] = set()
    kept = []
    for number, point in enumerate(points):
        if tuple(point) not in seen and not any(dominates(other, point) for other in points):
            kept.append(number)
        seen.add(tuple(point))
    return kept


def best(points: Sequence[Point], count: int) -> list[int]:
    """Returns `count` of `points`, ascending: front after front, and of the last one those far from each other.

    Source: Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II", sections III.A and III.B.
    """
    left, chosen = list(range(len(points))), list[int]()
    while left and len(chosen) < count:
        of = [left[i] for i in front([points[i] for i in left])]
        room = count - len(chosen)
        if len(of) > room:
            distance = _crowding([points[i] for i in of])
            order = sorted(range(len(of)), key=lambda i: -distance[i])
            of = [of[i] for i in order[:room]]
        chosen += of
        left = [i for i in left if i not in set(of)]
    return sorted(chosen)


def _crowding(points: Sequence[Point]) -> list[float]:
    """Returns how far each point's neighbours are from each other, summed over what counts; infinity for the ends."""
    distances = [0.0] * len(points)
    for axis in range(len(points[0])):
        order = sorted(range(len(points)), key=lambda i: points[i][axis])
        width = points[order[-1]][axis] - points[order[0]][axis]
        distances[order[0]] = distances[order[-1]] = math.inf
        for before, number, after in zip(order, order[1:], order[2:], strict=False):
            if width:
                distances[number] += (points[after][axis] - points[before][axis]) / width
    return distances
