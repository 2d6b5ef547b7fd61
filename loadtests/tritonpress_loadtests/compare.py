"""Two runs of one scenario: what changed, by how much, and whether that can be chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.report import template
from tritonpress_loadtests.results import Results
from tritonpress_loadtests.results_file import ComparedRun, read_results

_RESAMPLES = 2000
_LEAST_WINDOWS = 5
_PERCENTILES = ("p50", "p99")
_CONFIDENCE = 0.95


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

    `change` is after over before less 1, `low` and `high` its 95 % interval by a bootstrap over windows of time, which
    are drawn anew in each run. The interval is widened for the number of comparisons (Bonferroni), so that a page of
    many figures has one false alarm in twenty, not each of them. A figure is worse if all of the interval is, beyond
    `tolerance`.
    """
    figures = [("answers/s", "answered_per_s", -1), *((f"{name} ms", f"{name}_ms", 1) for name in _PERCENTILES)]
    stages = list(zip(before["stages"], after["stages"], strict=True))
    tail = 100 * (1 - _CONFIDENCE) / 2 / (len(stages) * len(figures))
    rows = []
    chance = np.random.default_rng(0)
    for old, new in stages:
        for figure, key, bad in figures:
            values = [_windows(stage, key) for stage in (old, new)]
            row: dict[str, Any] = {"stage": old["label"], "figure": figure}
            if min(map(len, values)) < _LEAST_WINDOWS:
                rows.append({**row, **dict.fromkeys(("before", "after", "change", "low", "high")), "worse": False})
                rows[-1]["better"] = False
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


def page(before: Results, after: Results, rows: list[dict[str, Any]]) -> str:
    """Returns the comparison as an HTML page that needs nothing else."""
    return template("compare.html.j2").render(before=before, after=after, rows=rows)


def _windows(stage: dict[str, Any], key: str) -> Any:
    """Returns a figure of each window behind the warm-up that has one."""
    windows = stage["windows"]
    first = round(stage["warm_up_s"] / windows["width_s"])
    return np.array([value for value in windows[key][first:] if value is not None], np.float64)
