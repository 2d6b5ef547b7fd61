"""What is known of a candidate that was measured, and what of it is relaxed when it misses the gate."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tritonpress_generator.errors import GateError, InputError, PlaceError
from tritonpress_generator.search import front
from tritonpress_generator.search.estimate import Estimate, Estimator
from tritonpress_generator.search.measure import GRAPH
from tritonpress_generator.search.space import Candidate


@dataclass(frozen=True)
class Trial:
    """One candidate, measured."""

    candidate: Candidate
    score: float
    """The metric on held-out examples; in a first trial on a few."""
    stages: Mapping[str, float]
    """The metric on a few of them: of the checkpoint (`""`), after each pass, and of the engine."""
    size_bytes: int
    """Of the engine."""
    throughput: float
    """Texts per second relative to the reference's, in turn with it."""
    latency: float
    """The time of a text alone, likewise."""
    seconds: float
    """How long it took to find this."""
    trained_s: float = 0.0
    """How long its distillation has taken, whenever that was."""

    def cost(self, objective: str) -> float:
        """Returns what the objective makes as small as it can; times in steps, since their noise is no difference."""
        if objective == "size":
            return float(self.size_bytes)
        return front.steps(self.latency if objective == "latency" else 1 / self.throughput)

    def point(self, objective: str) -> tuple[float, ...]:
        """Returns the point of the front: the metric, the latency, the size, and the objective if it is another.

        Smaller is better in each.
        """
        point = (-self.score, self.cost("latency"), self.cost("size"))
        return (*point, self.cost(objective)) if objective == "throughput" else point


def best(trials: Sequence[Trial], count: int, objective: str) -> list[Trial]:
    """Returns the best by metric and objective, in the order in which they were given."""
    return [trials[i] for i in front.best([(-trial.score, trial.cost(objective)) for trial in trials], count)]


def front_of(trials: Sequence[Trial], objective: str) -> list[Trial]:
    """Returns those that no other is better than; the objective's best first."""
    kept = front.front([trial.point(objective) for trial in trials])
    return sorted((trials[i] for i in kept), key=lambda trial: trial.cost(objective))


def attempted(compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns what is computed, or under `refused` why it cannot be, with the `seconds` that it took.

    Raises:
        InputError: Files could not be read or written, which says nothing of the candidate.
    """
    began = time.monotonic()
    try:
        result = compute()
    except PlaceError:
        raise
    except InputError as exc:
        if isinstance(exc.__cause__, OSError):
            raise
        result = {"refused": str(exc)}
    except GateError as exc:  # of a graph pass that is held to the metric itself
        result = {"refused": exc.reason, "remedy": exc.remedy}
    return {**result, "seconds": time.monotonic() - began}


def costs(stages: Mapping[str, float]) -> dict[str, float]:
    """Returns how much of the metric each stage costs, the one that costs most first.

    A distillation costs what it has not regained of what was lost before it, and so it comes first unless the graph
    passes cost more; what the passes before it cost falls by the share that it has regained.

    Args:
        stages: The metric of the checkpoint (`""`), and after each stage, in their order.
    """
    scores = [*stages.items()]
    found = {after: was - now for (_, was), (after, now) in itertools.pairwise(scores)}
    if "distill" in found:
        lost = sum(cost for stage, cost in found.items() if stage not in {"distill", GRAPH})
        left = max(0.0, lost + found["distill"])
        for stage in found.keys() - {"distill", GRAPH}:
            found[stage] *= left / lost if lost > 0 else 0.0
        found["distill"] = left
    # A distillation that ties with the only pass before it is the milder change.
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0] != "distill")))


def likely(
    candidates: Sequence[Candidate], measured: Sequence[Trial], estimator: Estimator, objective: str
) -> list[Candidate]:
    """Returns the half of the candidates that is the better one by estimate.

    Args:
        candidates: Which were not measured.
        measured: Others, by which it is known what a multiplication takes: those of the same precision, or else all.
        estimator: Of both.
        objective: The search's.
    """
    found, points = [], []
    for candidate in candidates:
        if (estimate := estimator(candidate)) is None:
            continue
        alike = [trial for trial in measured if trial.candidate.graph == candidate.graph] or measured
        known = [(trial, own) for trial in alike if (own := estimator(trial.candidate)) is not None]
        found.append(candidate)
        points.append((estimate.loss, _expected_cost(estimate, known, objective)))
    return [found[i] for i in front.best(points, (len(points) + 1) // 2)]


def _expected_cost(estimate: Estimate, known: Sequence[tuple[Trial, Estimate]], objective: str) -> float:
    """Returns what the objective, as `Trial.cost` has it but not in steps, is expected to be of a candidate.

    Args:
        estimate: Of the candidate.
        known: What was measured of others, and their estimates: the median of what these took for what they have.
        objective: The search's.
    """
    ratios = []
    for trial, own in known:
        by = {"size": trial.size_bytes / own.size_bytes, "latency": trial.latency / own.products}
        ratios.append(by.get(objective, 1 / trial.throughput / own.products))
    return (estimate.size_bytes if objective == "size" else estimate.products) * median(ratios)


def said(result: Mapping[str, Any]) -> str:
    """Returns what was found of a candidate in few words."""
    if reason := result.get("refused", result.get("gate")):
        return f"refused ({reason})"
    if "build" in result:
        return f"passed, {result['verdict']['metric']} {result['verdict']['served']:.4f}"
    if "layer" in result:
        return f"layer {result['layer']}"
    faster = f", {result['to_best']['throughput']:.2f}x the best" if "to_best" in result else ""
    size = f"{result['size_bytes'] / 1e6:.1f} MB"
    return f"{result['score']:.4f}, {result['throughput']:.2f}x the reference{faster}, {size}"
