"""What is tried in the place of a candidate that misses the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tritonpress_generator.search.estimate import Estimator
from tritonpress_generator.search.measure import GRAPH
from tritonpress_generator.search.space import Candidate, Space
from tritonpress_generator.search.trials import Trial, costs

_CUTS = ("crop", "prune")
_HOPELESS = 3.0
"""How many times what a candidate may lose it is expected to lose before it is passed over; estimates are rough."""


def milder(
    trial: Trial,
    space: Space,
    estimator: Estimator,
    of_higher_precision: Callable[[Candidate], Candidate | None],
    reached: tuple[float, float],
    blamed: str,
) -> Iterator[Candidate]:
    """Yields the candidates with less of one stage each, first of what cost the most.

    Args:
        trial: Of the candidate that misses.
        space: The candidates.
        estimator: Knows roughly what cutting costs.
        of_higher_precision: Returns a candidate with one more layer left out of its precision, if there is one.
        reached: The metric of the model as it is, and the least that one may have.
        blamed: The pass after which the gate was missed first, on examples of its own; "": none is known. Where it
            comes before the precision no other precision helps; else it is the precision.
    """
    for stage in _order(trial, blamed):
        found = of_higher_precision(trial.candidate) if stage == GRAPH else None
        found = found or _less(trial, stage, space, estimator, reached)
        if found is not None:
            yield found


def _order(trial: Trial, blamed: str) -> list[str]:
    stages = [*costs(trial.stages)]
    if not blamed:
        return stages
    if blamed in trial.stages:
        return [stage for stage in stages if stage != GRAPH]
    return sorted(stages, key=lambda stage: stage != GRAPH)


def _less(
    trial: Trial, stage: str, space: Space, estimator: Estimator, reached: tuple[float, float]
) -> Candidate | None:
    """Returns the candidate with as much less of `stage` as may suffice, or the least; None if there is no less.

    What is lost grows with the estimated loss: the steps whose estimate is hopeless by what the trial has lost are
    passed over, since each would take minutes.
    """
    found = space.milder(trial.candidate, stage)
    while stage in _CUTS and found is not None and _hopeless(found, trial, estimator, reached):
        further = space.milder(found, stage)
        if further is None:
            break
        found = further
    return found


def _hopeless(candidate: Candidate, trial: Trial, estimator: Estimator, reached: tuple[float, float]) -> bool:
    own, estimate = estimator(trial.candidate), estimator(candidate)
    if own is None or estimate is None or own.loss <= 0:
        return False
    whole, floor = reached
    return (whole - trial.score) * estimate.loss / own.loss > _HOPELESS * (whole - floor)
