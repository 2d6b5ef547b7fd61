"""The front as a table, and as one HTML file that needs no other: a plot, the table, and what was refused."""

from __future__ import annotations

from html import escape
from pathlib import Path

from tritonpress_generator import page
from tritonpress_generator.page import BOTTOM, EDGE, HEIGHT, LEFT, WIDTH, Axis
from tritonpress_generator.search.points import Point
from tritonpress_generator.search.run import Found
from tritonpress_generator.search.trials import Trial
from tritonpress_generator.table import render


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
    refused = page.table(["", "candidate", "why"], [["", what, why] for what, why in found.refused.items()])
    best = found.points[0]
    body = f"""<p>{len(found.points)} points of the front, of {len(found.trials)} candidates that were scored in
full, after {found.minutes:.1f} minutes. Objective: {found.objective}. The best: {escape(best.label)}.</p>
<figure>{_plot(found)}<figcaption>Each circle is a candidate; its area grows with the engine. Blue: the front, each
point of which has passed the gate. Orange, a ring on the front: the reference, the model as it is in the fastest
precision. Dashed: the least {escape(found.metric)} on the held-out examples. Hover for what a point
is.</figcaption></figure>
<h2>The front</h2>{page.table(header, lines)}
{f"<h2>Not taken</h2>{refused}" if found.refused else ""}"""
    path = found.folder / "report.html"
    path.write_text(page.page(f"Search of {recipe}", body), encoding="utf-8")
    return path


def _plot(found: Found) -> str:
    """Returns the candidates as SVG: texts per second relative to the reference to the right, the metric upwards."""
    trials = [*found.trials]
    horizontal = Axis([trial.throughput for trial in trials], LEFT, WIDTH - EDGE)
    vertical = Axis([*(trial.score for trial in trials), found.floor], HEIGHT - BOTTOM, EDGE)
    most = max(trial.size_bytes for trial in trials)
    on_front = {point.trial.candidate.key: point for point in found.points}
    # The largest first, so that none hides another.
    circles = "".join(
        _circle(trial, horizontal, vertical, most, found, on_front)
        for trial in sorted(trials, key=lambda trial: -trial.size_bytes)
    )
    limit = vertical(found.floor)
    ticks = page.ticks(horizontal, vertical, unit="x")
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='metric against speed'>{ticks}"
        f"<line class='limit' x1='{LEFT}' x2='{WIDTH - EDGE}' y1='{limit:.1f}' y2='{limit:.1f}'/>{circles}"
        f"<text x='{(LEFT + WIDTH) / 2}' y='{HEIGHT - 8}' text-anchor='middle'>texts per second, relative to the "
        f"reference</text><text x='{LEFT - 58}' y='14'>{escape(found.metric)} held out</text></svg>"
    )


def _circle(trial: Trial, horizontal: Axis, vertical: Axis, most: int, found: Found, on_front: dict[str, Point]) -> str:
    key = trial.candidate.key
    kinds = {"front": key in on_front, "reference": key == found.reference.key}
    kind = " ".join(name for name, holds in kinds.items() if holds) or "other"
    number = f"{[*on_front].index(key) + 1:02} " if key in on_front else ""
    title = (
        f"{number}{found.labels[key]}: {found.metric} {trial.score:.4f}, {trial.throughput:.2f}x, "
        f"{trial.size_bytes / 1e6:.2f} MB"
    )
    x, y = horizontal(trial.throughput), vertical(trial.score)
    radius = 4 + 12 * (trial.size_bytes / most) ** 0.5
    return (
        f"<circle class='{kind}' cx='{x:.1f}' cy='{y:.1f}' r='{radius:.1f}'><title>{escape(title)}</title></circle>"
        f"<text class='number' x='{x:.1f}' y='{y - radius - 3:.1f}' text-anchor='middle'>{number}</text>"
    )
