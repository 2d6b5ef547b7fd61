"""The plots of a run: as PNG files, and as SVG that takes the colours of the page around it.

Where several models are asked, latency against throughput has a line each, and latency by percentile a panel each.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from tritonpress_loadtests.results import Results, Samples

# Middle tones that stand out on white and on near-black alike.
_SERIES = ("#2f7fd8", "#d9730d", "#12957f", "#c2509e", "#7d6be0", "#8a8a1f")
_PERCENTILES = ("p50", "p95", "p99")
_QUANTILES = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)


@dataclass(frozen=True)
class _Colours:
    ink: str
    muted: str
    grid: str


_ON_WHITE = _Colours(ink="#1b1f24", muted="#5b6470", grid="#dfe3e8")
# Stand-ins that no plot uses otherwise; the page's own colours take their place.
_ON_PAGE = _Colours(ink="#010101", muted="#020202", grid="#030303")

_ALL = "all requests"


def write_plots(results: Results, samples: Sequence[Samples], out_dir: Path) -> None:
    """Writes `throughput_latency.png` and `latency.png`, on white, at 200 dots an inch."""
    views = _views(results, samples)
    throughput_latency = _throughput_latency(results, _ON_WHITE)
    latency = _latency(results, samples, views, _ON_WHITE)
    for name, figure in (("throughput_latency", throughput_latency), ("latency", latency)):
        figure.savefig(out_dir / f"{name}.png", dpi=200, facecolor="white")


def inline_svgs(results: Results, samples: Sequence[Samples]) -> dict[str, str]:
    """Returns the plots by caption as SVG elements that use the page's `--ink`, `--muted` and `--grid`."""
    figures = {"Latency against throughput": _throughput_latency(results, _ON_PAGE)}
    views = _views(results, samples)
    for name, parts in views.items():
        caption = "Latency by percentile" if len(views) == 1 else f"Latency by percentile: {name}"
        figures[caption] = _latency(results, samples, {name: parts}, _ON_PAGE)
    return {caption: _inline_svg(figure, f"plot{n}") for n, (caption, figure) in enumerate(figures.items())}


def _views(results: Results, samples: Sequence[Samples]) -> dict[str, list[Samples]]:
    """Returns each stage's requests: all of them, and those of each model where there are several."""
    views = {_ALL: list(samples)}
    models = [request["model"] for request in results["scenario"]["requests"]]
    if len(models) > 1:
        views |= {model: [part[part[:, 2] == place] for part in samples] for place, model in enumerate(models)}
    return views


def _throughput_latency(results: Results, colours: _Colours) -> Figure:
    """Latency against throughput, a point a stage; each model's against the throughput of all."""
    figure, (axes,) = _figure(1, colours)
    stages = [stage for stage in results["stages"] if stage["latency_ms"]]
    throughput = [stage["throughput_per_s"] for stage in stages]
    models = [request["model"] for request in results["scenario"]["requests"]]
    if len(models) == 1:
        for percentile, colour in zip(_PERCENTILES, _SERIES, strict=False):
            _curve(axes, throughput, stages, percentile, color=colour, label=percentile)
    else:
        lines = [(_ALL, stages, colours.ink)]
        lines += [
            (model, [stage["by_model"][model] for stage in stages], _SERIES[place % len(_SERIES)])
            for place, model in enumerate(models)
        ]
        for label, figures, colour in lines:
            _curve(axes, throughput, figures, "p99", color=colour, label=label)
            _curve(axes, throughput, figures, "p50", color=colour, linestyle=":")
    for stage in stages:
        shown = [stage["latency_ms"], *(figures["latency_ms"] for figures in stage["by_model"].values())]
        position = (stage["throughput_per_s"], max(latency["p99"] for latency in shown if latency))
        axes.annotate(
            _users(stage), position, (-7, 4), textcoords="offset points", ha="right", fontsize=8, color=colours.muted
        )
    if results["slo"]["p99_ms"] is not None:
        axes.axhline(results["slo"]["p99_ms"], color=colours.ink, linewidth=1, linestyle="--", label="p99 limit")
    axes.set_xlim(0, max(throughput, default=1) * 1.15)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
    axes.set_xlabel("throughput (answers/s)")
    axes.set_ylabel("latency (ms)" if len(models) == 1 else "latency (ms): p99, and p50 dotted")
    _legend(figure, axes, colours)
    return figure


def _curve(axes: Axes, throughput: list[float], figures: list[dict[str, Any]], percentile: str, **style: Any) -> None:
    latency = [entry["latency_ms"][percentile] if entry["latency_ms"] else np.nan for entry in figures]
    axes.plot(throughput, latency, marker="o", markersize=5, linewidth=1.8, **style)


def _latency(
    results: Results, samples: Sequence[Samples], views: dict[str, list[Samples]], colours: _Colours
) -> Figure:
    """Latency by percentile, a panel a view and a line a stage, all scaled to hold all requests."""
    figure, panels = _figure(len(views), colours)
    for axes, (name, parts) in zip(panels, views.items(), strict=True):
        for number, (stage, part) in enumerate(zip(results["stages"], parts, strict=True)):
            if not len(part):
                continue
            latency = np.sort(part[:, 1])
            slower = len(latency) - np.arange(len(latency)) - 0.5  # each request stands for the middle of its share
            colour = _SERIES[number % len(_SERIES)]
            axes.plot(len(latency) / slower, latency, linewidth=1.8, color=colour, label=_users(stage))
        _scale_by_nines(axes, samples)
        axes.set_xlabel("share of requests answered faster")
        axes.set_ylabel("latency (ms)")
        if len(views) > 1:
            axes.set_title(name, loc="left", fontsize=9.5, color=colours.ink)
    _legend(figure, panels[0], colours)
    return figure


def _scale_by_nines(axes: Axes, samples: Sequence[Samples]) -> None:
    """Scales latency against 1 / (1 − share), so that each further nine has the same width, to hold all requests."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    most = max(10, *(2 * len(part) for part in samples))
    axes.set_xlim(1, most)
    latency = np.concatenate([part[:, 1] for part in samples])
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


def _users(stage: dict[str, Any]) -> str:
    return f"{stage['users']} user{'' if stage['users'] == 1 else 's'}"


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


def _inline_svg(figure: Figure, name: str) -> str:
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
