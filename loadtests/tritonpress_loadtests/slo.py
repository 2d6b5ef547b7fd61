"""Whether stages kept what was asked of them, and a sentence for each limit that they missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tritonpress_loadtests.scenario import Slo

_LIMITS = {"p99_ms": ("p99", "p99"), "p999_ms": ("p999", "p99.9")}


def verdict(stages: Sequence[dict[str, Any]], slo: Slo, by_model: Mapping[str, Slo]) -> dict[str, Any]:
    """Returns the limits, whether every stage kept them, and a sentence for each that did not.

    Args:
        stages: As `summarise_stage` returns them.
        slo: The limits of all requests together.
        by_model: Further limits, of single models.
    """
    misses = [miss for stage in stages for miss in stage_misses(stage, slo, by_model)]
    limits = {model: model_slo.model_dump() for model, model_slo in by_model.items()}
    return {**slo.model_dump(), "by_model": limits, "met": not misses, "misses": misses}


def stage_misses(stage: dict[str, Any], slo: Slo, by_model: Mapping[str, Slo]) -> list[str]:
    """Returns a sentence for each limit that one stage did not keep."""
    at = f"at {stage['label']}"
    misses = _misses(at, stage, slo)
    for model, model_slo in by_model.items():
        misses += _misses(f"{at}, {model}:", stage["by_model"][model], model_slo)
    return misses


def _misses(at: str, figures: dict[str, Any], slo: Slo) -> list[str]:
    misses = []
    if figures["error_rate"] > slo.error_rate:
        misses.append(f"{at} {figures['error_rate']:.2%} of requests failed, the limit is {slo.error_rate:.2%}")
    if figures["latency_ms"] is None:
        return [*misses, f"{at} no request was answered"]
    for key, (percentile, words) in _LIMITS.items():
        limit_ms, value_ms = getattr(slo, key), figures["latency_ms"][percentile]
        if limit_ms is not None and value_ms > limit_ms:
            misses.append(f"{at} {words} is {value_ms:.1f} ms, the limit is {limit_ms:g} ms")
    return misses
