"""The ladder of precisions: each step down is served only if it keeps the metric and gains time.

A quantised engine is not always a faster one (https://github.com/NVIDIA/TensorRT/issues/4073), and what was gained in
FP32's place may be lost again in FP16's: each rung is held to the gate, and to the time of the one above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritonpress_generator import gate
from tritonpress_generator.errors import GateError
from tritonpress_generator.gate import Verdict
from tritonpress_generator.recipe_text import GateConfig
from tritonpress_generator.scores import Scores


@dataclass(frozen=True)
class Rung:
    """One precision, measured."""

    name: str
    scores: Scores
    latency_ms: float | None
    """Of one execution that stands for what will be asked; None where the engine itself was not run."""


@dataclass(frozen=True)
class Climbed:
    """What the ladder has left."""

    accepted: dict[str, Verdict]
    """By name, from the most accurate to the one that is served."""
    refused: dict[str, str]
    """Why, by name."""


def climb(config: GateConfig, baseline: Scores, rungs: Sequence[Rung], *, stage: str = "") -> Climbed:
    """Returns which of `rungs`, the most accurate first, keep the metric and are faster than the one accepted before.

    Args:
        config: The recipe's `gate`.
        baseline: Of the FP32 model.
        rungs: What may be served.
        stage: What has made the only one of them, for the message; default: its name.

    Raises:
        GateError: None of them keeps the metric.
    """
    accepted: dict[str, Verdict] = {}
    refused: dict[str, str] = {}
    last: Rung | None = None
    for rung in rungs:
        try:
            verdict = gate.check(config, baseline, rung.scores, stage=stage or rung.name)
        except GateError as exc:
            if len(rungs) - len(refused) == 1:
                raise
            refused[rung.name] = exc.reason
            continue
        before, after = last.latency_ms if last else None, rung.latency_ms
        if last is not None and before is not None and after is not None and not after < before:
            refused[rung.name] = f"must be faster than {last.name}, which takes {before:.3f} ms; takes {after:.3f} ms"
            continue
        accepted[rung.name] = verdict
        last = rung
    return Climbed(accepted, refused)
