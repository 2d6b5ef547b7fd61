"""The plots of a run: as PNG files, and as SVG that takes the colours of the page around it; from the results alone.

Where several models are asked, latency against throughput has a line each, and latency by percentile a panel each.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from tritonpress_loadtests import histograms
from tritonpress_loadtests.results import Results, by_load

# Middle tones that stand out on white and on near-black alike.
SERIES = ("#2f7fd8", "#d9730d", "#12957f", "#c2509e", "#7d6be0", "#8a8a1f")
_PERCENTILES = {"p50": "p50", "p95": "p95", "p99": "p99", "p999": "p99.9"}
_QUANTILES = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)
_MOST_LINES = 8


@dataclass(frozen=True)
class _Colours:
    ink: str
    muted: str
    grid: str


_ON_WHITE = _Colours(ink="#1b1f24", muted="#5b6470", grid="#dfe3e8")
# Stand-ins that no plot uses otherwise; the page's own colours take their place.
_ON_PAGE = _Colours(ink="#010101", muted="#020202", grid="#030303")

_ALL = "all requests"


def write_plots(results: Results, out_dir: Path) -> None:
    """Writes `throughput_latency`, `latency`, `over_time` and `batches` as PNG, on white, at 200 dots an inch."""
    views = _views(results)
    figures = {
        "throughput_latency": _throughput_latency(results, _ON_WHITE),
        "latency": _latency(results, views, _ON_WHITE),
        "over_time": _over_time(results, _ON_WHITE),
        "batches": _batches(results, _ON_WHITE),
    }
    for name, figure in figures.items():
        figure.savefig(out_dir / f"{name}.png", dpi=200, facecolor="white")


def inline_svgs(results: Results) -> dict[str, str]:
    """Returns the plots by caption as SVG elements that use the page's `--ink`, `--muted` and `--grid`."""
    figures = {
        "Latency against load": _throughput_latency(results, _ON_PAGE),
        "Latency over time": _over_time(results, _ON_PAGE),
    }
    views = _views(results)
    for name, parts in views.items():
        caption = "Latency by percentile" if len(views) == 1 else f"Latency by percentile: {name}"
        figures[caption] = _latency(results, {name: parts}, _ON_PAGE)
    figures["Batches at the highest load"] = _batches(results, _ON_PAGE)
    return {caption: inline_svg(figure, f"plot{n}") for n, (caption, figure) in enumerate(figures.items())}


def plan_svg(plan: dict[str, Any]) -> str:
    """Returns latency over the rate of one machine as an SVG element: simulated, measured, and the limit."""
    figure, (axes,) = _figure(1, _ON_PAGE)
    curve, checks = plan["curve"], plan["checks"]
    percentile = "p99" if plan["demand"]["quantile"] == 0.99 else "p99.9"
    rates, latencies = [[point[key] for point in curve] for key in ("rate_per_s", "p99_ms")]
    axes.plot(rates, latencies, color=SERIES[0], linewidth=1.8, label="simulated")
    # Stages far beyond the limit would leave no height for the others.
    shown = [check for check in checks if check["measured_ms"] <= 3 * plan["demand"]["p99_ms"]]
    axes.plot(
        [check["rate_per_s"] for check in shown],
        [check["measured_ms"] for check in shown],
        color=SERIES[1],
        marker="o",
        linestyle="",
        label="measured",
    )
    axes.axhline(plan["demand"]["p99_ms"], color=_ON_PAGE.ink, linewidth=1, linestyle="--", label="limit")
    axes.axvline(plan["capacity"]["rate_per_s"], color=_ON_PAGE.muted, linewidth=1, linestyle=":", label="capacity")
    axes.set_ylim(0, None)
    axes.set_xlim(0, None)
    axes.set_xlabel("requests/s of one machine")
    axes.set_ylabel(f"{percentile} (ms)")
    _legend(figure, axes, _ON_PAGE)
    return inline_svg(figure, "plan")


def _views(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Returns each load's figures: those of all requests, and those of each model where there are several."""
    loads = by_load(results)
    views: dict[str, list[dict[str, Any]]] = {_ALL: loads}
    models = [request["model"] for request in results["scenario"]["requests"]]
    if len(models) > 1:
        views |= {model: [load["by_model"][model] for load in loads] for model in models}
    return views


def _throughput_latency(results: Results, colours: _Colours) -> Figure:
    """Latency against the rate, a point a load: the offered rate in an open loop, the reached one in a closed loop."""
    figure, (axes,) = _figure(1, colours)
    stages = [load for load in by_load(results) if load["latency_ms"]]
    stages.sort(key=_load)
    loads = [_load(stage) for stage in stages]
    models = [request["model"] for request in results["scenario"]["requests"]]
    if len(models) == 1:
        for (percentile, label), colour in zip(_PERCENTILES.items(), SERIES, strict=False):
            _curve(axes, loads, stages, percentile, color=colour, label=label)
    else:
        lines = [(_ALL, stages, colours.ink)]
        lines += [
            (model, [stage["by_model"][model] for stage in stages], SERIES[place % len(SERIES)])
            for place, model in enumerate(models)
        ]
        for label, figures, colour in lines:
            _curve(axes, loads, figures, "p99", color=colour, label=label)
            _curve(axes, loads, figures, "p50", color=colour, linestyle=":")
    knee = _knee(stages)
    if knee is not None:
        axes.axvline(knee, color=colours.muted, linewidth=1, linestyle=":", label="knee")
    if results["slo"]["p99_ms"] is not None:
        axes.axhline(results["slo"]["p99_ms"], color=colours.ink, linewidth=1, linestyle="--", label="p99 limit")
    axes.set_xlim(0, (max(loads, default=0) or 1) * 1.15)
    values = [value for stage in stages for value in (stage["latency_ms"]["p50"], stage["latency_ms"]["p99"])]
    if values and max(values) > 20 * min(values):
        _scale_by_decades(axes)
    else:
        axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
    opened = [stage["offered_per_s"] is not None for stage in stages]
    axes.set_xlabel("offered rate (requests/s)" if all(opened) and opened else "throughput (answers/s)")
    axes.set_ylabel("latency (ms)" if len(models) == 1 else "latency (ms): p99, and p50 dotted")
    _legend(figure, axes, colours)
    return figure


def _load(stage: dict[str, Any]) -> float:
    offered: float | None = stage["offered_per_s"]
    reached: float = stage["throughput_per_s"]
    return reached if offered is None else offered


def _knee(stages: list[dict[str, Any]]) -> float | None:
    """Returns the load with the largest throughput over mean latency (Kleinrock's power); None below three loads."""
    powers = {_load(stage): stage["throughput_per_s"] / stage["latency_ms"]["mean"] for stage in stages}
    return max(powers, key=powers.__getitem__) if len(powers) >= 3 else None


def _curve(axes: Axes, loads: list[float], figures: list[dict[str, Any]], percentile: str, **style: Any) -> None:
    latency = [entry["latency_ms"][percentile] if entry["latency_ms"] else np.nan for entry in figures]
    axes.plot(loads, latency, marker="o", markersize=4, linewidth=1.8, **style)


def _over_time(results: Results, colours: _Colours) -> Figure:
    """p50 and p99 of each window, the stages one after the other."""
    figure, (axes,) = _figure(1, colours)
    start_s = 0.0
    for number, stage in enumerate(results["stages"]):
        windows = stage["windows"]
        middles_s = start_s + (np.arange(len(windows["p50_ms"])) + 0.5) * windows["width_s"]
        for percentile, colour in (("p99", SERIES[1]), ("p50", SERIES[0])):
            values = [np.nan if value is None else value for value in windows[f"{percentile}_ms"]]
            label = percentile if not number else None
            axes.plot(middles_s, values, color=colour, linewidth=1.4, marker=".", markersize=3, label=label)
        start_s += stage["duration_s"]
        axes.axvline(start_s, color=colours.grid, linewidth=1)
    if results["slo"]["p99_ms"] is not None:
        axes.axhline(results["slo"]["p99_ms"], color=colours.ink, linewidth=1, linestyle="--", label="p99 limit")
    if any(stage["latency_ms"] for stage in results["stages"]):
        _scale_by_decades(axes)
    axes.set_xlabel("time under load (s)")
    axes.set_ylabel("latency (ms)")
    _legend(figure, axes, colours)
    return figure


def _batches(results: Results, colours: _Colours) -> Figure:
    """The share of the requests that ran in executions of each size, a line of bars a model."""
    figure, (axes,) = _figure(1, colours)
    stages = [stage for stage in results["stages"] if stage["models"]]
    stage = max(stages, key=_load, default=None)
    rows = [row for row in stage["models"] if row["batch_sizes"]] if stage else []
    for place, row in enumerate(rows):
        sizes = np.array([int(size) for size in row["batch_sizes"]], float)
        served = sizes * np.array(list(row["batch_sizes"].values()), float)
        name = row["model"] if len(row["model"]) < 32 else row["model"][:31] + "…"
        offset = (place - (len(rows) - 1) / 2) * 0.8 / max(1, len(rows))
        axes.bar(
            sizes + offset,
            served / served.sum(),
            0.8 / max(1, len(rows)),
            color=SERIES[place % len(SERIES)],
            label=name,
        )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rows in an execution")
    axes.set_ylabel("share of the rows")
    _legend(figure, axes, colours)
    return figure


def _latency(results: Results, views: dict[str, list[dict[str, Any]]], colours: _Colours) -> Figure:
    """Latency by percentile, a panel a view and a line a load, all scaled to hold all requests."""
    figure, panels = _figure(len(views), colours)
    loads = by_load(results)
    numbers = np.unique(np.linspace(0, len(loads) - 1, _MOST_LINES).round().astype(int)).tolist()
    whole = [histograms.counts(histograms.merged([load["histogram"]])) for load in loads]
    for axes, (name, parts) in zip(panels, views.items(), strict=True):
        for line, number in enumerate(numbers):
            values, times = histograms.counts(histograms.merged([parts[number]["histogram"]]))
            if not len(values):
                continue
            slower = times.sum() - np.cumsum(times) + 0.5  # each bucket stands for its slowest request
            label, colour = loads[number]["label"], SERIES[line % len(SERIES)]
            axes.plot(times.sum() / slower, values / 1e3, linewidth=1.8, color=colour, label=label)
        _scale_by_nines(axes, whole)
        axes.set_xlabel("share of requests answered faster")
        axes.set_ylabel("latency (ms)")
        if len(views) > 1:
            axes.set_title(name, loc="left", fontsize=9.5, color=colours.ink)
    _legend(figure, panels[0], colours)
    return figure


def _scale_by_decades(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()


def _scale_by_nines(axes: Axes, whole: list[histograms.Counts]) -> None:
    """Scales latency against 1 / (1 − share), so that each further nine has the same width, to hold all requests."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    most = max(10, *(2 * int(times.sum()) for _, times in whole))
    axes.set_xlim(1, most)
    latency = np.concatenate([values for values, _ in whole]) / 1e3
    if len(latency):
        axes.set_ylim(0.8 * latency.min(), 1.25 * latency.max())
    ticks = [1 / (1 - quantile) for quantile in _QUANTILES if 1 / (1 - quantile) <= most * 1.01]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * (1 - 1 / value):.6g}%"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _figure(panels: int, colours: _Colours) -> tuple[Figure, list[Axes]]:
    """Returns a figure of that many panels, two in a row."""
    # A single one is of the width of a phone, so that the text is read without zooming there.
    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure = Figure(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten().tolist()
    for axes in grid[panels:]:
        axes.remove()
    for axes in grid[:panels]:
        axes.set_facecolor("none")
        axes.grid(color=colours.grid, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(colours.muted)
        axes.tick_params(colors=colours.muted, labelsize=9, length=0)
        axes.xaxis.label.set(color=colours.ink, fontsize=9.5)
        axes.yaxis.label.set(color=colours.ink, fontsize=9.5)
    return figure, grid[:panels]


def _legend(figure: Figure, axes: Axes, colours: _Colours) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = min(len(handles), 4 if max(map(len, labels)) < 12 else 2)
        figure.legend(
            handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9, labelcolor=colours.ink
        )


def inline_svg(figure: Figure, name: str) -> str:
    """Returns the figure as an `<svg>` element; ids carry the plot's name, since two plots share a page."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for role in ("ink", "muted", "grid"):
        svg = svg.replace(getattr(_ON_PAGE, role), f"var(--{role})")
    return svg
