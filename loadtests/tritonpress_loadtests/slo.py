"""Whether stages kept what was asked of them, and a sentence for each limit that they missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tritonpress_loadtests import histograms
from tritonpress_loadtests.scenario import Slo

_LIMITS = {"p99_ms": ("p99", "p99", 0.99), "p999_ms": ("p999", "p99.9", 0.999)}


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
    """Returns a sentence for each limit that one stage did not keep, or a part of it where its rate changes."""
    misses = []
    for part in stage.get("pieces") or [stage]:
        at = f"at {part['label']}"
        misses += _misses(at, part, slo)
        for model, model_slo in by_model.items():
            misses += _misses(f"{at}, {model}:", part["by_model"][model], model_slo)
    return misses


def _misses(at: str, figures: dict[str, Any], slo: Slo) -> list[str]:
    if not figures["requests"]:
        return []  # a rare model of a mix, or a part at a low rate, may not be asked at all
    misses = []
    if figures["error_rate"] > slo.error_rate:
        misses.append(f"{at} {figures['error_rate']:.2%} of requests failed, the limit is {slo.error_rate:.2%}")
    if figures["latency_ms"] is None:
        return [*misses, f"{at} no request was answered"]
    for key, (percentile, words, quantile) in _LIMITS.items():
        limit_ms, value_ms = getattr(slo, key), figures["latency_ms"][percentile]
        if limit_ms is None:
            continue
        if value_ms > limit_ms:
            misses.append(f"{at} {words} is {value_ms:.1f} ms, the limit is {limit_ms:g} ms")
        elif (told := _unanswered_and_slower(figures, quantile, limit_ms)) is not None:
            misses.append(f"{at} {told}: more than the {100 * (1 - quantile):g}% that {words} leaves")
    return misses


def _unanswered_and_slower(figures: dict[str, Any], quantile: float, limit_ms: float) -> str | None:
    """Returns how many requests failed or took longer than a limit, if they are more than the quantile leaves.

    A request that failed has no latency, so that the percentile is of the others; its user has waited in vain all the
    same. None of the failed is cut with the warm-up.
    """
    latencies_us, times = histograms.counts(histograms.merged([figures["histogram"]]))
    slower = int(times[latencies_us > 1e3 * limit_ms].sum())
    failed, judged = figures["failed"], figures["failed"] + int(times.sum())
    if failed + slower <= (1 - quantile) * judged + 1e-9:
        return None
    return f"{failed:,} of {judged:,} requests failed and {slower:,} took longer than {limit_ms:g} ms"
