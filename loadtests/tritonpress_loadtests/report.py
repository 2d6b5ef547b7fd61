"""What a run leaves behind: JSON, CSV, plots, and one HTML file that needs nothing else."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tritonpress_loadtests.errors import NotWrittenError
from tritonpress_loadtests.out_files import write_whole
from tritonpress_loadtests.plots import inline_svgs, write_plots
from tritonpress_loadtests.results import PERCENTILES, Results, asked_model, by_load

_GPU_FORMS = {
    "utilization": (1, "{:.0%} used"),
    "memory_bytes": (2**-30, "{:.1f} GiB"),
    "power_w": (1, "{:.0f} W"),
}
_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
_NAMES = {"p999": "p99.9"}


def write_report(results: Results, out_dir: Path) -> None:
    """Writes `results.json`, and then what is made of it: `report.html`, `stages.csv` and plots as PNG.

    Raises:
        NotWrittenError: Something cannot be written.
    """
    write_results(results, out_dir)
    try:
        write_plots(results, out_dir)
        (out_dir / "report.html").write_text(page(results), encoding="utf-8")
        (out_dir / "stages.csv").write_text(stages_csv(results), encoding="utf-8")
    except OSError as exc:
        raise NotWrittenError(
            f"cannot write page, plots and table into {out_dir}: {exc.strerror or exc}; results.json there has all that"
            " was measured, for plan and compare",
            results,
        ) from exc


def write_results(results: Results, out_dir: Path) -> None:
    """Writes `results.json`, whole or not at all.

    Raises:
        NotWrittenError: It cannot be written.
    """
    path = out_dir / "results.json"
    try:
        write_whole(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    except OSError as exc:
        raise NotWrittenError(
            f"cannot write {path}: {exc.strerror}; what was measured is kept nowhere: run it again with another --out",
            results,
        ) from exc


def page(results: Results) -> str:
    """Returns the HTML page of a run."""
    answered = [load for load in by_load(results) if load["latency_ms"]]
    models = [request["model"] for request in results["scenario"]["requests"]]
    return template("report.html.j2").render(
        results=results,
        stages=[{**stage, "bars": _bars(stage, models)} for stage in results["stages"]],
        fastest=max(answered, key=lambda load: load["throughput_per_s"], default=None),
        quickest=min(answered, key=lambda load: load["latency_ms"]["p50"], default=None),
        requests=sum(stage["requests"] for stage in results["stages"]),
        failed=sum(stage["failed"] for stage in results["stages"]),
        models=models,
        bottleneck=any(stage["generator"]["bottleneck"] for stage in results["stages"]),
        percentiles={key: _NAMES.get(key, key) for key in PERCENTILES},
        limits=_limits(results["slo"]),
        gpus=_gpus(results["stages"]),
        cached=any(
            "cache_hits" in counted or "cache_misses" in counted
            for stage in results["stages"]
            for counted in stage["server"]["metrics"].values()
        ),
        plots=[(caption, Markup(svg)) for caption, svg in inline_svgs(results).items()],
    )


def template(name: str) -> jinja2.Template:
    """Returns a page's template; what it does not know is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def stages_csv(results: Results) -> str:
    """Returns a table of a line a stage and model ("" for all)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    latencies = ["mean", "min", *PERCENTILES, "max"]
    writer.writerow(
        ["stage", "loop", "model", "duration_s", "requests", "failed", "throughput_per_s"]
        + [f"{name}_ms" for name in latencies]
        + [f"{name}_ms_{side}" for name in PERCENTILES for side in ("low", "high")]
        + ["stable", "binding"]
    )
    for stage in results["stages"]:
        for model, figures in {"": stage, **stage["by_model"]}.items():
            latency, interval = figures["latency_ms"], figures["interval_ms"]
            writer.writerow(
                [stage["label"], stage["loop"], model, stage["duration_s"]]
                + [figures[key] for key in ("requests", "failed", "throughput_per_s")]
                + [latency[name] if latency else "" for name in latencies]
                + [bound for name in PERCENTILES for bound in (interval[name] if interval else ("", ""))]
                + [stage["stable"], stage["binding"]]
            )
    return text.getvalue()


def _limits(slo: dict[str, Any]) -> list[str]:
    """Returns the limits of all requests, and of each model that has its own, in a few words each."""
    owners: dict[str, dict[str, Any]] = {"": slo, **slo["by_model"]}
    return [
        (f"{model}: " if model else "")
        + (f"p99 ≤ {limits['p99_ms']:g} ms, " if limits["p99_ms"] is not None else "")
        + (f"p99.9 ≤ {limits['p999_ms']:g} ms, " if limits["p999_ms"] is not None else "")
        + f"errors ≤ {100 * limits['error_rate']:g} %"
        for model, limits in owners.items()
    ]


def _gpus(stages: Sequence[dict[str, Any]]) -> list[str]:
    """Returns what each stage took of each GPU, in a few words, as far as Triton's metrics have it."""
    lines = []
    for stage in stages:
        answered = stage["requests"] - stage["failed"]
        for uuid, figures in stage["server"]["gpu"].items():
            parts = [form.format(scale * figures[key]) for key, (scale, form) in _GPU_FORMS.items() if key in figures]
            if answered and "energy_j" in figures:
                parts.append(f"{1000 * figures['energy_j'] / answered:.1f} J for 1,000 answers")
            lines.append(f"{uuid} at {stage['label']}: {', '.join(parts)}")
    return lines


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
