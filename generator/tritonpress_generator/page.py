"""What the pages of our commands have in common: their style, their frame, and the axes of their plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 860, 440, 70, 50, 24
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
.reference { fill: var(--reference); fill-opacity: .8; }
.front.reference { fill: var(--front); stroke: var(--reference); stroke-width: 3; }
circle:hover { fill-opacity: 1; stroke: var(--text); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; } td, th { padding: .3rem .7rem; text-align: right; }
th { color: var(--soft); font-weight: 600; } tr + tr { border-top: 1px solid var(--line); }
td:nth-child(2), th:nth-child(2), td:last-child, th:last-child { text-align: left; }
td:not(:nth-child(2)):not(:last-child) { white-space: nowrap; } td:nth-child(2), td:last-child { min-width: 12rem; }
figure { margin: 1rem 0; } .interval { stroke: var(--soft); }
.curve { fill: none; stroke-width: 1.5; }
.curve.front { stroke: var(--front); } .curve.reference { stroke: var(--reference); }
.pareto { fill: none; stroke: var(--text); stroke-width: 1.2; pointer-events: none; }
"""


def page(title: str, body: str) -> str:
    """Returns a page that needs no other file."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
{body}
</body></html>
"""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of text as a table that scrolls where the screen is narrow."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{cells}</tr>{lines}</table></div>"


def ticks(horizontal: Axis, vertical: Axis, *, unit: str = "") -> str:
    """Returns a plot's ticks as SVG, and a line for each of the vertical ones; `unit` is the horizontal axis's."""
    below = "".join(
        f"<text x='{horizontal(value):.1f}' y='{HEIGHT - BOTTOM + 18}' text-anchor='middle'>{value:.4g}{unit}</text>"
        for value in horizontal.ticks
    )
    return below + "".join(
        f"<line class='axis' x1='{LEFT}' x2='{WIDTH - EDGE}' y1='{vertical(value):.1f}' y2='{vertical(value):.1f}'/>"
        f"<text x='{LEFT - 8}' y='{vertical(value) + 4:.1f}' text-anchor='end'>{value:.4g}</text>"
        for value in vertical.ticks
    )


class Axis:
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
