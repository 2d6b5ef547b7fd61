"""The two plots of a run: as PNG files, and as SVG that takes the colours of the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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

_Plot = Callable[[Results, Sequence[Samples], _Colours], Figure]


def write_plots(results: Results, samples: Sequence[Samples], out_dir: Path) -> None:
    """Writes `throughput_latency.png` and `latency.png`, on white, at 200 dots an inch."""
    for name, plot in _PLOTS.items():
        plot(results, samples, _ON_WHITE).savefig(out_dir / f"{name}.png", dpi=200, facecolor="white")


def inline_svgs(results: Results, samples: Sequence[Samples]) -> dict[str, str]:
    """Returns the plots by name as SVG elements that use the page's `--ink`, `--muted` and `--grid`."""
    return {name: _inline_svg(plot(results, samples, _ON_PAGE), name) for name, plot in _PLOTS.items()}


def _throughput_latency(results: Results, samples: Sequence[Samples], colours: _Colours) -> Figure:
    """Latency against throughput, a point a stage."""
    figure, axes = _figure(colours)
    stages = [stage for stage in results["stages"] if stage["latency_ms"]]
    throughput = [stage["throughput_per_s"] for stage in stages]
    for percentile, colour in zip(_PERCENTILES, _SERIES, strict=False):
        latency = [stage["latency_ms"][percentile] for stage in stages]
        axes.plot(throughput, latency, marker="o", markersize=5, linewidth=1.8, color=colour, label=percentile)
    for stage in stages:
        text = f"{stage['users']} user{'s' if stage['users'] != 1 else ''}"
        position = (stage["throughput_per_s"], stage["latency_ms"]["p99"])
        axes.annotate(text, position, (-7, 4), textcoords="offset points", ha="right", fontsize=8, color=colours.muted)
    if results["slo"]["p99_ms"] is not None:
        axes.axhline(results["slo"]["p99_ms"], color=colours.ink, linewidth=1, linestyle="--", label="p99 limit")
    axes.set_xlim(0, max(throughput, default=1) * 1.15)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
    axes.set_xlabel("throughput (answers/s)")
    axes.set_ylabel("latency (ms)")
    _legend(figure, axes, colours)
    return figure


def _latency(results: Results, samples: Sequence[Samples], colours: _Colours) -> Figure:
    """Latency by percentile, a line a stage; the horizontal axis gives each further nine the same width."""
    figure, axes = _figure(colours)
    most = 10
    for number, (stage, part) in enumerate(zip(results["stages"], samples, strict=True)):
        if not len(part):
            continue
        latency = np.sort(part[:, 1])
        slower = len(latency) - np.arange(len(latency)) - 0.5  # each request stands for the middle of its share
        users = f"{stage['users']} user{'s' if stage['users'] != 1 else ''}"
        axes.plot(len(latency) / slower, latency, linewidth=1.8, color=_SERIES[number % 6], label=users)
        most = max(most, 2 * len(latency))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1, most)
    ticks = [1 / (1 - quantile) for quantile in _QUANTILES if 1 / (1 - quantile) <= most * 1.01]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * (1 - 1 / value):.6g}%"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_xlabel("share of requests answered faster")
    axes.set_ylabel("latency (ms)")
    _legend(figure, axes, colours)
    return figure


_PLOTS: dict[str, _Plot] = {"throughput_latency": _throughput_latency, "latency": _latency}


def _figure(colours: _Colours) -> tuple[Figure, Axes]:
    # Of the width of a phone, so that the text is read without zooming there.
    figure = Figure(figsize=(4.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.grid(color=colours.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colours.muted)
    axes.tick_params(colors=colours.muted, labelsize=9, length=0)
    axes.xaxis.label.set(color=colours.ink, fontsize=9.5)
    axes.yaxis.label.set(color=colours.ink, fontsize=9.5)
    return figure, axes


def _legend(figure: Figure, axes: Axes, colours: _Colours) -> None:
    handles = axes.get_legend_handles_labels()[0]
    if handles:
        columns = min(len(handles), 4)
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=9, labelcolor=colours.ink)


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
