"""Two runs of one scenario: what changed, by how much, and whether that can be chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.report import template
from tritonpress_loadtests.results import Results
from tritonpress_loadtests.results_file import ComparedRun, read_results

_RESAMPLES = 2000
_LEAST_WINDOWS = 5
_PERCENTILES = ("p50", "p99")
_CONFIDENCE = 0.95
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
    `high` its 95 % interval by a bootstrap over windows of time, which are drawn anew in each run. The interval is
    widened for the number of comparisons (Bonferroni), so that a page of many figures has one false alarm in twenty,
    not each of them. A figure is worse if all of the interval is, beyond `tolerance`, a share of what was before.
    """
    figures = [("answers/s", "answered_per_s", -1), *((f"{name} ms", f"{name}_ms", 1) for name in _PERCENTILES)]
    stages = list(zip(before["stages"], after["stages"], strict=True))
    tail = 100 * (1 - _CONFIDENCE) / 2 / (len(stages) * (len(figures) + 1))
    rows = []
    chance = np.random.default_rng(0)
    for old, new in stages:
        failures = [_failures(stage) for stage in (old, new)]
        if any(each[:, 0].any() for each in failures):
            rows.append({"stage": old["label"], **_failed(failures, tail, tolerance, chance)})
        for figure, key, bad in figures:
            values = [_windows(stage, key) for stage in (old, new)]
            row: dict[str, Any] = {"stage": old["label"], "figure": figure}
            if min(map(len, values)) < _LEAST_WINDOWS:
                rows.append({**row, **_TOO_SHORT})
                continue
            means = [float(each.mean()) for each in values]
            drawn = [each[chance.integers(0, len(each), (_RESAMPLES, len(each)))].mean(axis=1) for each in values]
            ratio = drawn[1] / np.maximum(drawn[0], 1e-12) - 1
            low, high = (float(bound) for bound in np.percentile(ratio, [tail, 100 - tail]))
            worst_sure = low if bad > 0 else -high
            best_sure = -high if bad > 0 else low
            change = means[1] / means[0] - 1 if means[0] else 0.0
            found = {"before": means[0], "after": means[1], "change": change, "low": low, "high": high}
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


def _failed(
    failures: list[NDArray[np.float64]], tail: float, tolerance: float, chance: np.random.Generator
) -> dict[str, Any]:
    """Returns the row of the share that failed, in percent, whose change is a difference.

    Args:
        failures: As `_failures` returns them, before and after.
        tail: What lies beyond each end of the interval, in percent.
        tolerance: A loss that is accepted, as a share of what failed before.
        chance: What windows are drawn by.
    """
    row = {"figure": "failed %"}
    if min(map(len, failures)) < _LEAST_WINDOWS:
        return {**row, **_TOO_SHORT}
    old, new = (_share(each.sum(axis=0)) for each in failures)
    drawn = [_share(each[chance.integers(0, len(each), (_RESAMPLES, len(each)))].sum(axis=1)) for each in failures]
    low, high = (float(bound) for bound in np.percentile(drawn[1] - drawn[0], [tail, 100 - tail]))
    accepted = tolerance * float(old)
    found = {
        "before": 100 * float(old),
        "after": 100 * float(new),
        "change": float(new - old),
        "low": low,
        "high": high,
    }
    return {**row, **found, "worse": low > accepted, "better": -high > accepted}


def _share(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the share that failed of (…, 2) failed and answered."""
    shares: NDArray[np.float64] = counts[..., 0] / np.maximum(counts.sum(axis=-1), 1e-12)
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
