"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tritonpress_loadtests.plots import inline_svgs
from tritonpress_loadtests.results import Results, Samples, asked_model

_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


def write_report(results: Results, samples: Sequence[Samples], path: Path) -> None:
    """Writes the page.

    Args:
        results: As `tritonpress_loadtests.results` describes them.
        samples: The answered requests of each stage.
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
    models = [request["model"] for request in results["scenario"]["requests"]]
    page = environment.get_template("report.html.j2").render(
        results=results,
        stages=[{**stage, "bars": _bars(stage, models)} for stage in results["stages"]],
        fastest=max(answered, key=lambda stage: stage["throughput_per_s"], default=None),
        quickest=min(answered, key=lambda stage: stage["latency_ms"]["p50"], default=None),
        requests=sum(stage["requests"] for stage in results["stages"]),
        failed=sum(stage["failed"] for stage in results["stages"]),
        models=models,
        limits=_limits(results["slo"]),
        plots=[(caption, Markup(svg)) for caption, svg in inline_svgs(results, samples).items()],
    )
    path.write_text(page, encoding="utf-8")


def _limits(slo: dict[str, Any]) -> list[str]:
    """Returns the limits of all requests, and of each model that has its own, in a few words each."""
    owners = {"": slo, **slo["by_model"]}
    return [
        (f"{model}: " if model else "")
        + (f"p99 ≤ {limits['p99_ms']:g} ms, " if limits["p99_ms"] is not None else "")
        + f"errors ≤ {100 * limits['error_rate']:g} %"
        for model, limits in owners.items()
    ]


def _bars(stage: dict[str, Any], models: Sequence[str]) -> list[dict[str, Any]]:
    """Returns, for each model, its parts of the time as shares of the slowest model's, for stacked bars.

    An ensemble's own row is left out of the bars where its steps are there: it is their sum.
    """
    ensembles = {asked_model(row, models) for row in stage["models"] if row["model"] not in models}
    rows = [row for row in stage["models"] if row["model"] not in ensembles]
    longest = max((sum(row[f"{part}_us"] for part in _PARTS) for row in rows), default=0) or 1
    return [
        {"model": row["model"], "parts": [(part, 100 * row[f"{part}_us"] / longest) for part in _PARTS]} for row in rows
    ]
