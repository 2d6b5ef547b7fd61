"""Two runs of one scenario: what changed, by how much, and whether that can be chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.report import template
from tritonpress_loadtests.results import Results
from tritonpress_loadtests.results_file import ComparedRun, read_results

_LEAST_WINDOWS = 5
_PERCENTILES = ("p50", "p99")
_CONFIDENCE = 0.95
_ANGLES = 20_001
_LEAST = 1e-12  # stands for 0 below a fraction
_TOO_SHORT: dict[str, Any] = {
    **dict.fromkeys(("before", "after", "change", "low", "high")),
    "worse": False,
    "better": False,
}


def load_pair(before: Path, after: Path) -> tuple[Results, Results]:
    """Returns both runs' results.

    Raises:
        ScenarioError: One cannot be read, or they are not of the same stages.
    """
    pair = [read_results(folder, ComparedRun) for folder in (before, after)]
    labels = [[stage["label"] for stage in run["stages"]] for run in pair]
    if labels[0] != labels[1]:
        raise ScenarioError(
            f"{before} and {after} are not of the same stages ({', '.join(labels[0])}; {', '.join(labels[1])});"
            " run one scenario twice"
        )
    return pair[0], pair[1]


def compare(before: Results, after: Results, *, tolerance: float = 0.0) -> list[dict[str, Any]]:
    """Returns a row for each stage and figure: stage, figure, before, after, change, low, high, worse, better.

    `change` is after over before less 1 (of the share that failed, in which before may be 0: the difference), `low` and
    `high` its 95 % interval by what windows of time differ from each other. The interval is widened for the number of
    comparisons (Bonferroni), so that a page of many figures has one false alarm in twenty, not each of them. A figure
    is worse if all of the interval is, beyond `tolerance`, a share of what was before.

    The fewer windows, the less is found: in runs of three stages of 6 windows a change of 2.5 standard deviations of a
    window is found in half of the cases, and in stages of 20 windows one of 1.1.
    """
    figures = [("answers/s", "answered_per_s", -1), *((f"{name} ms", f"{name}_ms", 1) for name in _PERCENTILES)]
    stages = list(zip(before["stages"], after["stages"], strict=True))
    tail = (1 - _CONFIDENCE) / 2 / (len(stages) * (len(figures) + 1))
    rows = []
    for old, new in stages:
        failures = [_failures(stage) for stage in (old, new)]
        if any(each[:, 0].any() for each in failures):
            rows.append({"stage": old["label"], **_failed(failures, tail, tolerance)})
        for figure, key, bad in figures:
            values = [_windows(stage, key) for stage in (old, new)]
            row: dict[str, Any] = {"stage": old["label"], "figure": figure}
            if min(map(len, values)) < _LEAST_WINDOWS:
                rows.append({**row, **_TOO_SHORT})
                continue
            found = _changed(values, tail)
            worst_sure = found["low"] if bad > 0 else -found["high"]
            best_sure = -found["high"] if bad > 0 else found["low"]
            rows.append({**row, **found, "worse": worst_sure > tolerance, "better": best_sure > tolerance})
    return rows


def differences(before: Results, after: Results) -> list[str]:
    """Returns what else than the change that is asked about tells the runs apart, a sentence each."""
    said = []
    if before["scenario"]["sha256"] != after["scenario"]["sha256"]:
        said.append("the scenarios' files differ")
    if before["machine"] != after["machine"]:
        said.append("the machines differ")
    return said


def bottlenecks(before: Results, after: Results) -> list[str]:
    """Returns in which stages the load generator was the bottleneck, which is then what is compared."""
    return [
        f"the load generator was the bottleneck {when} at {stage['label']}: it {stage['generator']['bottleneck']}"
        for when, run in (("before", before), ("after", after))
        for stage in run["stages"]
        if stage["generator"]["bottleneck"]
    ]


def page(before: Results, after: Results, rows: list[dict[str, Any]]) -> str:
    """Returns the comparison as an HTML page that needs nothing else."""
    return template("compare.html.j2").render(
        before=before,
        after=after,
        rows=rows,
        differences=differences(before, after),
        bottlenecks=bottlenecks(before, after),
    )


def _changed(values: list[NDArray[np.float64]], tail: float) -> dict[str, float]:
    """Returns before, after, change, low and high of a figure's windows, before and after."""
    old, new = (float(each.mean()) for each in values)
    scale = max(old, _LEAST)
    # Of a ratio, and never less than of a difference: a hiccup that only one run has counts whichever it is.
    slack = max(1.0, new / scale) ** 2
    variances = [float(each.var(ddof=1)) / len(each) for each in values]
    half = _half_width([slack * variances[0], variances[1]], [len(each) for each in values], tail) / scale
    change = (new - old) / scale
    return {"before": old, "after": new, "change": change, "low": max(-1.0, change - half), "high": change + half}


def _failed(failures: list[NDArray[np.float64]], tail: float, tolerance: float) -> dict[str, Any]:
    """Returns the row of the share that failed, in percent, whose change is a difference.

    Args:
        failures: As `_failures` returns them, before and after.
        tail: What lies beyond each end of the interval.
        tolerance: A loss that is accepted, as a share of what failed before.
    """
    row = {"figure": "failed %"}
    if min(map(len, failures)) < _LEAST_WINDOWS:
        return {**row, **_TOO_SHORT}
    old, new = (float(_share(each.sum(axis=0))) for each in failures)
    both = float(_share(sum(each.sum(axis=0) for each in failures)))
    variances = []
    for each, share in zip(failures, (old, new), strict=True):
        requests = max(float(each.sum()), _LEAST)
        residuals = each[:, 0] - share * each.sum(axis=1)
        spread = float(residuals @ residuals) * len(each) / (len(each) - 1)
        # Windows that are alike by chance, such as one failure in each, tell no less chance than single requests have.
        variances.append(max(spread, both * (1 - both) * requests) / requests**2)
    half = _half_width(variances, [len(each) for each in failures], tail)
    change, accepted = new - old, tolerance * old
    found = {"before": 100 * old, "after": 100 * new, "change": change, "low": change - half, "high": change + half}
    return {**row, **found, "worse": change - half > accepted, "better": -change - half > accepted}


def _half_width(variances: Sequence[float], counts: Sequence[int], tail: float) -> float:
    """Returns half of the interval of a difference of two means.

    Source: Welch 1947, "The generalization of 'Student's' problem when several different population variances are
    involved". A percentile bootstrap of a handful of windows is too narrow: with 5 in each of three stages, a third of
    all pairs of equal runs differed by it.

    Args:
        variances: Of both means.
        counts: Of the windows that each is the mean of.
        tail: What lies beyond each end.
    """
    total = sum(variances)
    if not total:
        return 0.0
    freedom = 1 / sum((each / total) ** 2 / (count - 1) for each, count in zip(variances, counts, strict=True))
    return _t_quantile(freedom, tail) * math.sqrt(total)


def _t_quantile(freedom: float, tail: float) -> float:
    """Returns what Student's t exceeds with that probability: by t = √ν tan θ its density is that of cos θ to ν − 1."""
    angles = np.linspace(0, math.pi / 2, _ANGLES)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(1 - 2 * tail, below / below[-1], angles)))


def _share(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the share that failed of (…, 2) failed and answered."""
    shares: NDArray[np.float64] = counts[..., 0] / np.maximum(counts.sum(axis=-1), _LEAST)
    return shares


def _failures(stage: dict[str, Any]) -> NDArray[np.float64]:
    """Returns (windows, 2): the requests that failed and those that were answered in each, behind the warm-up."""
    windows = stage["windows"]
    first = round(stage["warm_up_s"] / windows["width_s"])
    answered = [rate * windows["width_s"] for rate in windows["answered_per_s"]]
    return np.array(list(zip(windows["failed"], answered, strict=False))[first:], np.float64).reshape(-1, 2)


def _windows(stage: dict[str, Any], key: str) -> Any:
    """Returns a figure of each window behind the warm-up that has one."""
    windows = stage["windows"]
    first = round(stage["warm_up_s"] / windows["width_s"])
    return np.array([value for value in windows[key][first:] if value is not None], np.float64)
