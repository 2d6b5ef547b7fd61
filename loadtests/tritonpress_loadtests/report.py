"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tritonpress_loadtests.plots import inline_svgs
from tritonpress_loadtests.results import Results, Samples

_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


def write_report(results: Results, samples: Sequence[Samples], path: Path) -> None:
    """Writes the page.

    Args:
        results: As `tritonpress_loadtests.results` describes them.
        samples: For each stage float64 (answered, 2): sent at (s from the stage's start), latency (ms).
        path: The file to write.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    answered = [stage for stage in results["stages"] if stage["latency_ms"]]
    page = environment.get_template("report.html.j2").render(
        results=results,
        stages=[{**stage, "bars": _bars(stage, results["scenario"]["model"])} for stage in results["stages"]],
        fastest=max(answered, key=lambda stage: stage["throughput_per_s"], default=None),
        quickest=min(answered, key=lambda stage: stage["latency_ms"]["p50"], default=None),
        requests=sum(stage["requests"] for stage in results["stages"]),
        failed=sum(stage["failed"] for stage in results["stages"]),
        plots={name: Markup(svg) for name, svg in inline_svgs(results, samples).items()},
    )
    path.write_text(page, encoding="utf-8")


def _bars(stage: dict[str, Any], asked: str) -> list[dict[str, Any]]:
    """Returns, for each model, its parts of the time as shares of the slowest model's, for stacked bars.

    An ensemble's own row is left out of the bars where its steps are there: it is their sum.
    """
    rows = [row for row in stage["models"] if row["model"] != asked] or stage["models"]
    longest = max((sum(row[f"{part}_us"] for part in _PARTS) for row in rows), default=0) or 1
    return [
        {"model": row["model"], "parts": [(part, 100 * row[f"{part}_us"] / longest) for part in _PARTS]} for row in rows
    ]
