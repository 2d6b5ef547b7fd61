"""The front as a table, and as one HTML file that needs no other: a plot, the table, and what was refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tritonpress_generator.search.points import Point
from tritonpress_generator.search.run import Found
from tritonpress_generator.search.trials import Trial
from tritonpress_generator.table import render

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _EDGE = 860, 440, 70, 50, 24
_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --line: #d1d9e0; --back: #ffffff;
        --front: #0b57d0; --other: #8c959f; --reference: #b3470b; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9198a1; --line: #3d444d; --back: #0d1117;
          --front: #79b8ff; --other: #6e7681; --reference: #ffa657; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 900px;
       margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } text { fill: var(--soft); font-size: 12px; } .number { fill: var(--text); }
svg .axis { stroke: var(--line); } .limit { stroke: var(--reference); stroke-dasharray: 5 4; }
.other { fill: var(--other); fill-opacity: .45; } .front { fill: var(--front); fill-opacity: .75; }
.reference { fill: var(--reference); fill-opacity: .8; } circle:hover { fill-opacity: 1; stroke: var(--text); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; } td, th { padding: .3rem .7rem; text-align: right; }
th { color: var(--soft); font-weight: 600; } tr + tr { border-top: 1px solid var(--line); }
td:nth-child(2), th:nth-child(2), td:last-child { text-align: left; }
"""


def rows(found: Found) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of the front's table, the best by the objective first."""
    gated = found.points[0].gate["metric"]
    header = ["", "point", f"{found.metric} held out", f"{gated} gate", "texts/s", "speed-up", "ms a text", "engine MB"]
    lines = [
        [
            f"{number:02}",
            point.label,
            f"{point.trial.score:.4f}",
            f"{point.gate['served']:.4f}",
            f"{point.texts_per_s:.0f}",
            f"{point.speedup:.2f}x",
            f"{point.latency_ms:.2f}",
            f"{point.trial.size_bytes / 1e6:.2f}",
        ]
        for number, point in enumerate(found.points, start=1)
    ]
    return header, lines


def table(found: Found) -> str:
    """Returns the front's table as text; what each point is stands on the left."""
    header, lines = rows(found)
    return render(["point", *header[2:]], [[f"{line[0]} {line[1]}", *line[2:]] for line in lines])


def write(found: Found, recipe: str) -> Path:
    """Returns the path of the page about the search of the recipe of that name, after writing it beside the points."""
    header, lines = rows(found)
    cells = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    refused = "".join(
        f"<tr><td></td><td>{escape(what)}</td><td>{escape(why)}</td></tr>" for what, why in found.refused.items()
    )
    best = found.points[0]
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Search of {escape(recipe)}</title><style>{_STYLE}</style></head><body>
<h1>Search of {escape(recipe)}</h1>
<p>{len(found.points)} points of the front, of {len(found.trials)} candidates that were scored in full, after
{found.minutes:.1f} minutes. Objective: {found.objective}. The best: {escape(best.label)}.</p>
<figure>{_plot(found)}<figcaption>Each circle is a candidate; its area grows with the engine. Blue: the front, each
point of which has passed the gate. Orange: the reference, the model as it is in the fastest precision. Dashed: the
least {escape(found.metric)} on the held-out examples. Hover for what a point is.</figcaption></figure>
<h2>The front</h2><div class="scroll"><table><tr>{cells}</tr>{body}</table></div>
{"<h2>Refused</h2><div class='scroll'><table>" + refused + "</table></div>" if refused else ""}
</body></html>
"""
    path = found.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _plot(found: Found) -> str:
    """Returns the candidates as SVG: texts per second relative to the reference to the right, the metric upwards."""
    trials = [*found.trials]
    horizontal = _Axis([trial.throughput for trial in trials], _LEFT, _WIDTH - _EDGE)
    vertical = _Axis([*(trial.score for trial in trials), found.floor], _HEIGHT - _BOTTOM, _EDGE)
    most = max(trial.size_bytes for trial in trials)
    on_front = {point.trial.candidate.key: point for point in found.points}
    # The largest first, so that none hides another.
    circles = "".join(
        _circle(trial, horizontal, vertical, most, found, on_front)
        for trial in sorted(trials, key=lambda trial: -trial.size_bytes)
    )
    limit = vertical(found.floor)
    ticks = "".join(
        f"<text x='{horizontal(value):.1f}' y='{_HEIGHT - _BOTTOM + 18}' text-anchor='middle'>{value:.3g}x</text>"
        for value in horizontal.ticks
    ) + "".join(
        f"<line class='axis' x1='{_LEFT}' x2='{_WIDTH - _EDGE}' y1='{vertical(value):.1f}' y2='{vertical(value):.1f}'/>"
        f"<text x='{_LEFT - 8}' y='{vertical(value) + 4:.1f}' text-anchor='end'>{value:.4g}</text>"
        for value in vertical.ticks
    )
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='metric against speed'>{ticks}"
        f"<line class='limit' x1='{_LEFT}' x2='{_WIDTH - _EDGE}' y1='{limit:.1f}' y2='{limit:.1f}'/>{circles}"
        f"<text x='{(_LEFT + _WIDTH) / 2}' y='{_HEIGHT - 8}' text-anchor='middle'>texts per second, relative to the "
        f"reference</text><text x='{_LEFT - 58}' y='14'>{escape(found.metric)} held out</text></svg>"
    )


def _circle(
    trial: Trial, horizontal: _Axis, vertical: _Axis, most: int, found: Found, on_front: dict[str, Point]
) -> str:
    key = trial.candidate.key
    kind = "front" if key in on_front else "reference" if key == found.reference.key else "other"
    number = f"{[*on_front].index(key) + 1:02} " if key in on_front else ""
    title = (
        f"{number}{trial.candidate.label}: {found.metric} {trial.score:.4f}, {trial.throughput:.2f}x, "
        f"{trial.size_bytes / 1e6:.2f} MB"
    )
    x, y = horizontal(trial.throughput), vertical(trial.score)
    radius = 4 + 12 * (trial.size_bytes / most) ** 0.5
    return (
        f"<circle class='{kind}' cx='{x:.1f}' cy='{y:.1f}' r='{radius:.1f}'><title>{escape(title)}</title></circle>"
        f"<text class='number' x='{x:.1f}' y='{y - radius - 3:.1f}' text-anchor='middle'>{number}</text>"
    )


class _Axis:
    """Places values between two edges, with some room beside them, and ticks at round ones."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        room = (max(values) - min(values)) * 0.1 or abs(max(values)) * 0.1 or 1.0
        self._low, self._high, self._start, self._end = min(values) - room, max(values) + room, start, end
        rough = (self._high - self._low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        first = math.ceil(self._low / step)
        self.ticks = [step * number for number in range(first, math.floor(self._high / step) + 1)]

    def __call__(self, value: float) -> float:
        """Returns the place of a value."""
        return self._start + (value - self._low) / (self._high - self._low) * (self._end - self._start)
