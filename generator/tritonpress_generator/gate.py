"""The gate: what is served must keep the agreed share of the FP32 baseline's metric.

Data of a few hundred examples says a metric only within some percent. So the share that was kept comes with an
interval, and there are three verdicts: all of the interval is at or above what was agreed, all of it is below, or the
data are too few to tell.
"""

from __future__ import annotations

import filecmp
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tritonpress_generator.errors import GateError, InputError, UndecidedError
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.recipe_text import GateConfig
from tritonpress_generator.scores import AGREEMENT, Scores

_MOST_TIMES = 30
"""How far the scatter may reach beyond the margin for the missing examples to be named: 900 times those there are."""


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
    floors = [(name, config.keep, wanted, "gate.keep")]
    agreement = None
    if config.agreement is not None:
        agreement = served.metrics[AGREEMENT]
        wanted = (
            f"gate: {AGREEMENT} with FP32's answers must stay at or above {config.agreement:g}, got {agreement:.4f}"
        )
        floors.append((AGREEMENT, config.agreement, wanted, "gate.agreement"))
    intervals: list[tuple[float, float] | None] = []
    undecided: list[UndecidedError] = []
    for one, keep, wanted, key in floors:
        try:
            intervals.append(_held(one, keep, baseline, served, confidence, wanted, key))
        except UndecidedError as exc:
            undecided.append(exc)  # said last: of what is certain to fail elsewhere, more examples mend nothing
    if undecided:
        raise undecided[0]
    return Verdict(name, before, after, limit, served.examples, confidence, intervals[0], agreement)


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


def read_elsewhere(recipe: Recipe, folder: Path) -> list[str]:
    """Returns the keys of the recipe's `data`, whose files are in `folder`, that name the gate's own examples.

    What was trained or chosen on them keeps more of the metric there than on others.
    """
    own = recipe.file(recipe.gate.dataset)
    files = {"data.train": recipe.data.train, "data.validation": recipe.data.validation} if recipe.data else {}
    return [key for key, names in files.items() if any(_are_the_same(own, folder / name) for name in names)]


def _are_the_same(own: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(own, other, shallow=False)


def check_examples(config: GateConfig, examples: int) -> None:
    """Refuses examples so few that the baseline's own answers would not pass, before a search among models like it.

    A build does not ask this: its one model may be so much better than the baseline that they suffice.

    Raises:
        InputError: They are too few.
    """
    if config.confidence == "point":
        return
    limits = {"gate.keep": config.keep} | ({} if config.agreement is None else {"gate.agreement": config.agreement})
    key = max(limits, key=lambda name: limits[name])
    # The exact low end of `interval`, where the baseline has all of them right.
    fewest = math.ceil(math.log((1 - config.confidence) / 2) / math.log(limits[key]))
    if examples < fewest:
        raise InputError(
            f"gate: {config.dataset} must have at least {fewest:,} examples for a search, since of fewer not even "
            f"FP32's own answers are certain at {config.confidence:.0%} to keep {limits[key]:g}, has {examples:,}; "
            f"add examples, lower {key}, or ask for the point estimate alone (gate.confidence: point)"
        )


def _held(
    name: str, keep: float, baseline: Scores, served: Scores, confidence: float | None, wanted: str, key: str
) -> tuple[float, float] | None:
    """Returns the interval of the share that is kept of the metric `name`, None for the point estimate.

    Raises:
        GateError: The share is certain to be below `keep`, or is no number.
        UndecidedError: It is neither certain to be below nor not to be.
    """
    before, after = baseline.metrics[name], served.metrics[name]
    remedy = f"lower {key} or compress less"
    if confidence is None:
        # Written so that NaN fails too.
        if not after >= keep * before:
            raise GateError(wanted, remedy)
        return None
    low, high = kept = interval(name, baseline, served, confidence)
    if not high >= keep:
        raise GateError(f"{wanted}, certain at {confidence:.0%} with {served.examples} examples", remedy)
    if low >= keep:
        return kept
    unseen = -math.log((1 - confidence) / 2) * _most(name, served) / before
    more = missing(after / before, keep, kept, served.examples, unseen)
    many = "no number of examples is likely to decide" if more is None else f"about {more:,} more are needed"
    raise UndecidedError(
        f"{wanted}: undecided at {confidence:.0%} with {served.examples} examples, {many}",
        f"add examples, compress less, lower {key}, or ask for the point estimate alone (gate.confidence: point)",
    )


def interval(name: str, baseline: Scores, served: Scores, confidence: float) -> tuple[float, float]:
    """Returns the two-sided interval of the share that is kept of the metric `name`; NaN where a draw is no number.

    A paired bootstrap says nothing of what no example shows, and too little of what one or two show. So each end counts
    an example more, of the largest loss or gain that there can be; its part of all has the distribution Beta(1, n)
    (Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
    variable"). Where no example differs and the baseline has all of them right, the low end is exact: n examples show
    no loss with the chance p^n, if p is the share that is kept and what is lost are whole examples, the rarest to be
    seen; so it is ((1 - confidence) / 2)^(1 / n). Of a baseline that is right less often it is as much further away.
    That holds for metrics that are means over examples, of 0 to the most each; for `macro_f1` and `mcc`, in which an
    example of a rare label weighs more, it is an approximation.
    """
    ours, theirs = served.draws[name], baseline.draws[name]
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return math.nan, math.nan
    most, tail = _most(name, served), (1 - confidence) / 2

    def chance(extra: NDArray[np.float64]) -> float:
        """Returns how likely the example more weighs as much as `extra`, beside the n that weigh 1 together."""
        return float(np.mean((1 + np.maximum(extra, 0) / most) ** -float(served.examples)))

    low = _end(lambda share: chance(ours / share - theirs) <= tail)
    high = _end(lambda share: chance(share * theirs - ours) > tail)
    return low, high


def _end(is_below: Callable[[float], bool]) -> float:
    """Returns the share up to which `is_below` holds, very large where it always does."""
    low, high = 0.0, 1.0  # of share / (1 + share)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle / (1 - middle)) else (low, middle)
    return low / (1 - low)


def _most(name: str, scores: Scores) -> float:
    """Returns what an example scores at most."""
    return 1.0 if name == AGREEMENT else scores.most


def missing(share: float, keep: float, ends: Sequence[float], examples: int, unseen: float) -> int | None:
    """Returns how many more examples an undecided gate needs, None where the share is next to the agreed one.

    The interval must be as narrow as the share is far from `keep`. The scatter narrows with the square root of the
    examples, what none of them shows with their number, and the squares of both add up, nearly.

    Args:
        share: That is kept.
        keep: That must be.
        ends: Of its interval.
        examples: How many there are.
        unseen: How far the interval reaches for what none of them shows, times their number.
    """
    low, high = ends
    margin = abs(share - keep)
    reach = share - low if share > keep else high - share
    scatter = math.sqrt(max(0.0, reach**2 - (unseen / examples) ** 2))
    if margin <= scatter / _MOST_TIMES:
        return None
    half = examples * scatter**2 / 2
    needed = (half + math.hypot(half, unseen * margin)) / margin**2
    return max(1, math.ceil(needed) - examples)
