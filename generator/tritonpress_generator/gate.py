"""The gate: what is served must keep the agreed share of the FP32 baseline's metric.

Data of a few hundred examples says a metric only within some percent. So the share that was kept comes with the
interval of a paired bootstrap, and there are three verdicts: all of the interval is at or above what was agreed, all of
it is below, or the data are too few to tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tritonpress_generator.errors import GateError, InputError, UndecidedError
from tritonpress_generator.recipe_text import GateConfig
from tritonpress_generator.scores import AGREEMENT, Scores

_MOST_TIMES = 30
"""How far an interval may reach beyond the margin for the missing examples to be named: 900 times those there are."""


@dataclass(frozen=True)
class Verdict:
    """What the gate measured."""

    metric: str
    baseline: float
    served: float
    limit: float
    examples: int
    confidence: float | None
    """Of `kept`; None where the recipe asks for the point estimate alone."""
    kept: tuple[float, float] | None
    """The interval of the share of the baseline's metric that is kept."""
    agreement: float | None = None
    """With the baseline's answers, where that was asked for."""


def check(config: GateConfig, baseline: Scores, served: Scores, *, stage: str = "") -> Verdict:
    """Returns the verdict if `served` keeps what was agreed of `baseline`.

    Args:
        config: The recipe's `gate`.
        baseline: Of the FP32 model; higher is better.
        served: Of the artefact that will be served, on the same examples.
        stage: What has made it, for the message.

    Raises:
        GateError: The metric, or the agreement with the baseline's answers, has fallen further than agreed, or is not a
            number.
        UndecidedError: The examples are too few to say at the confidence that was asked for.
        InputError: As `check_baseline`.
    """
    name, confidence = config.metric, None if config.confidence == "point" else config.confidence
    before, after = check_baseline(config, baseline), served.metrics[name]
    limit = config.keep * before
    fallen = (before - after) / before * 100
    wanted = (
        f"gate: {name} must stay at or above {limit:.4f} ({config.keep:g} of FP32's {before:.4f}), got {after:.4f}, "
        f"{fallen:.2f} % less{f' after {stage}' if stage else ''}"
    )
    kept = None
    if confidence is not None:
        draws = served.draws[name] - config.keep * baseline.draws[name]
        kept = _interval(_shares(served.draws[name], baseline.draws[name]), confidence)
        _decide(after - limit, draws, confidence, served.examples, wanted, "gate.keep")
    # Written so that NaN fails too.
    elif not after >= limit:
        raise GateError(wanted, "lower gate.keep or compress less")
    agreement = _agreement(config, served, confidence)
    return Verdict(name, before, after, limit, served.examples, confidence, kept, agreement)


def check_baseline(config: GateConfig, baseline: Scores) -> float:
    """Returns the metric of `baseline`, of which a share can be kept.

    Raises:
        InputError: It is not above 0: there is nothing to keep, and of a negative one a share would be more than all.
    """
    before = baseline.metrics[config.metric]
    if not before > 0:
        raise InputError(
            f"gate: {config.metric} of the FP32 checkpoint must be above 0 on {config.dataset}, is {before:.4f}; check "
            "the checkpoint and gate.dataset, or take another gate.metric"
        )
    return before


def _agreement(config: GateConfig, served: Scores, confidence: float | None) -> float | None:
    """Returns how far the answers are the baseline's, held to the floor that the recipe gives.

    Raises:
        GateError: It is below.
        UndecidedError: The examples are too few to say.
    """
    if config.agreement is None:
        return None
    got = served.metrics[AGREEMENT]
    wanted = f"gate: {AGREEMENT} with FP32's answers must stay at or above {config.agreement:g}, got {got:.4f}"
    if confidence is not None:
        draws = served.draws[AGREEMENT] - config.agreement
        _decide(got - config.agreement, draws, confidence, served.examples, wanted, "gate.agreement")
    elif not got >= config.agreement:
        raise GateError(wanted, "lower gate.agreement or compress less")
    return got


def _decide(margin: float, draws: NDArray[np.float64], confidence: float, examples: int, wanted: str, key: str) -> None:
    """Returns if the margin over the limit is certain not to be negative.

    Raises:
        GateError: It is certain to be, or is no number.
        UndecidedError: Neither is certain.
    """
    low, high = _interval(draws, confidence)
    if low >= 0:
        return
    if not high >= 0:
        reason = f"{wanted}, certain at {confidence:.0%} with {examples} examples"
        raise GateError(reason, f"lower {key} or compress less")
    more = missing(margin, (low, high), examples)
    many = "no number of examples is likely to decide" if more is None else f"about {more:,} more are needed"
    raise UndecidedError(
        f"{wanted}: undecided at {confidence:.0%} with {examples} examples, {many}",
        f"add examples, compress less, lower {key}, or ask for the point estimate alone (gate.confidence: point)",
    )


def missing(margin: float, interval: Sequence[float], examples: int) -> int | None:
    """Returns how many more examples an undecided gate needs, None where the margin is next to nothing.

    An interval narrows with the square root of the examples; it must be as narrow as the margin is far from 0.
    """
    low, high = interval
    reach = margin - low if margin > 0 else high - margin
    times = (reach / abs(margin)) if abs(margin) > reach / _MOST_TIMES else math.inf
    return None if math.isinf(times) else max(1, math.ceil(examples * times**2) - examples)


def _interval(draws: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Returns the two-sided percentile interval; NaN where a draw is no number."""
    low, high = np.percentile(draws, [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)


def _shares(served: NDArray[np.float64], baseline: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns served / baseline, 1 where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = served / baseline
    return np.where((served == 0) & (baseline == 0), 1.0, shares)
