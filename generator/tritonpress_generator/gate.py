"""The gate: what is served must keep the agreed share of the FP32 baseline's metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tritonpress_generator.errors import GateError
from tritonpress_generator.recipe import GateConfig


@dataclass(frozen=True)
class Verdict:
    """What the gate measured."""

    metric: str
    baseline: float
    served: float
    limit: float


def check(config: GateConfig, baseline: Mapping[str, float], served: Mapping[str, float]) -> Verdict:
    """Returns the verdict if `served` is at least `keep` times `baseline`.

    Args:
        config: The recipe's `gate`.
        baseline: The FP32 model's metrics, higher is better.
        served: Those of the artefact that will be served, on the same examples.

    Raises:
        GateError: The metric has fallen further than agreed, or is not a number.
    """
    before, after = baseline[config.metric], served[config.metric]
    limit = config.keep * before
    # Written so that NaN fails too.
    if not after >= limit:
        fallen = (before - after) / before * 100 if before else float("nan")
        raise GateError(
            f"gate: {config.metric} must stay at or above {limit:.4f} ({config.keep:g} of FP32's {before:.4f}), "
            f"got {after:.4f}, {fallen:.2f} % less; nothing was written; lower gate.keep or compress less"
        )
    return Verdict(config.metric, before, after, limit)
