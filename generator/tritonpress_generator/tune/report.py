"""What a tuning has found, as a table for people, as a page, and as entries of a manifest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tritonpress_generator import page
from tritonpress_generator.page import BOTTOM, EDGE, HEIGHT, LEFT, WIDTH, Axis
from tritonpress_generator.search.front import front
from tritonpress_generator.table import render
from tritonpress_generator.tune.climb import STEP, Point, Tried
from tritonpress_generator.tune.confirm import ROUNDS
from tritonpress_generator.tune.knobs import words
from tritonpress_generator.tune.load import Measured
from tritonpress_generator.tune.session import Found

_HEADER = ("configs", "requests/s", "p99 ms", "95 %", "mean batch", "because")


def rows(found: Found) -> list[list[str]]:
    """Returns the configs as they are and each that was tried, in their order, with what decided."""
    now = {knob.key: knob.now for knob in found.knobs}
    lines = []
    if found.first is not None:
        lines.append(["as it is", *_figures(found.first.kept), _ends(found.first)])
    for tried in found.tried:
        name = words(found.knobs, tried.setting, than=now)
        lines.append([name, *_figures(tried.at), _why(tried)])
    return lines


def _figures(at: Measured) -> list[str]:
    if math.isinf(at.p99_ms):
        return [f"{at.rate_per_s:.0f}", "-", "-", "-"]
    return [f"{at.rate_per_s:.0f}", f"{at.p99_ms:.1f}", f"{at.low_ms:.1f} to {at.high_ms:.1f}", f"{at.mean_batch:.1f}"]


def _ends(point: Point) -> str:
    if point.missed is None:
        return "kept; the time was over"
    return f"kept, and missed at {point.missed.rate_per_s:.0f}/s ({point.missed.p99_ms:.0f} ms)"


def _why(tried: Tried) -> str:
    if tried.point is not None:
        return f"better: {_ends(tried.point)}"
    return tried.at.fault or f"misses the limit at {STEP - 1:.0%} more than the best before it"


def summary(found: Found) -> list[str]:
    """Returns the closing lines."""
    lines = [render(_HEADER, rows(found)), ""]
    if found.first is None:
        lines.append("as it is, the limit is kept at no rate")
    if found.first is not None and found.best.setting == found.first.setting:
        lines.append(
            f"nothing that was tried sustains more than the configs as they are: {found.best.rate_per_s:.0f}/s"
        )
    else:
        than = "" if found.gain is None else f", {found.gain:.2f} × as it is"
        lines.append(
            f"best: {words(found.knobs, found.best.setting)}: {found.best.rate_per_s:.0f}/s within "
            f"{found.limit_ms:g} ms{than}; {_verdict(found)}"
        )
        if len(found.rounds) < ROUNDS:
            lines.append(
                f"the time was over after {len(found.rounds)} of {ROUNDS} rounds in turn; the same command with more "
                "--budget-minutes goes on"
            )
    if not found.complete:
        lines.append(
            "the time was over before every knob was turned; the same command with more --budget-minutes goes on"
        )
    lines.append(f"load: {found.traffic}")
    return lines


def _verdict(found: Found) -> str:
    if not found.rounds:
        return "not confirmed, since no time was left to measure it in turn with the configs as they are"
    verdict = "confirmed" if found.confirmed else "not confirmed"
    said = f"{verdict} in turn: kept in {_kept([at for _, at in found.rounds], found.limit_ms)}"
    before = [at for at, _ in found.rounds if at is not None]
    return f"{said}, as it is in {_kept(before, found.limit_ms)} at the same rate" if before else said


def _kept(measured: Sequence[Measured], limit_ms: float) -> str:
    """Returns in how many rounds the limit was kept, the range of p99, and how often there is none of all requests."""
    values_ms = [at.p99_ms for at in measured if at.sound]
    unsound = len(measured) - len(values_ms)
    said = [f"p99 {min(values_ms):.1f} to {max(values_ms):.1f} ms"] if values_ms else []
    said += [f"{unsound} times not all answered"] if unsound else []
    kept = sum(at.keeps(limit_ms) for at in measured)
    return f"{kept} of {len(measured)} rounds ({', '.join(said)})"


def manifest_entry(found: Found) -> dict[str, Any]:
    """Returns what a build's manifest says of its tuning."""
    return {
        "p99_ms": found.limit_ms,
        "rate_per_s": found.best.rate_per_s,
        "rate_before_per_s": None if found.first is None else found.first.rate_per_s,
        "rounds_p99_ms": [at.p99_ms for _, at in found.rounds],
        "load": found.traffic,
        "reasons": [dict(zip(_HEADER, row, strict=True)) for row in rows(found)],
    }


def write(found: Found, path: Path, lines: dict[str, list[str]]) -> None:
    """Writes the page.

    Args:
        found: What it says.
        path: Of the page.
        lines: What each workload's recipe must say for the same configs.
    """
    recipes = "".join(
        f"<p>The same in the recipe of {escape(name)}, in place of what it has:</p>"
        f"<pre>{escape(chr(10).join(text))}</pre>"
        for name, text in lines.items()
    )
    closing = "".join(f"<p>{escape(line)}</p>" for line in summary(found)[2:])
    body = f"""{closing}
<figure>{_plot(found)}<figcaption>Each circle is a measurement at a rate; the line through it is the interval of its
p99 at 95 %. Blue: the best configs. Orange: the configs as they were. Ringed, with steps between them: the
Pareto front, where no other measurement had as high a rate with as low a p99. Dashed: the limit. Hover for what was
served.</figcaption></figure>
<h2>What was tried</h2>{page.table(["", *_HEADER], [["", *row] for row in rows(found)])}
{recipes}"""
    path.write_text(page.page(f"Tuning for p99 within {found.limit_ms:g} ms", body), encoding="utf-8")


def _plot(found: Found) -> str:
    """Returns the measurements as SVG: requests/s to the right, p99 upwards, cut off at three times the limit."""
    top = 3 * found.limit_ms
    shown = [(setting, at) for setting, at in found.measured if not math.isinf(at.p99_ms)]
    undominated = _front([at for _, at in shown])
    horizontal = Axis([at.rate_per_s for _, at in shown], LEFT, WIDTH - EDGE)
    vertical = Axis([0.0, *(min(at.p99_ms, top) for _, at in shown), found.limit_ms], HEIGHT - BOTTOM, EDGE)
    limit = vertical(found.limit_ms)
    marks: list[str] = []
    curves: dict[str, list[tuple[float, float]]] = {"reference": [], "front": []}
    steps: list[tuple[float, float]] = []
    for number, (setting, at) in enumerate(shown):
        kind = "other"
        if setting == found.best.setting:
            kind = "front"
        elif found.first is not None and setting == found.first.setting:
            kind = "reference"
        x, y = horizontal(at.rate_per_s), vertical(min(at.p99_ms, top))
        if kind in curves:
            curves[kind].append((x, y))
        if number in undominated:
            steps.append((x, y))
            marks.append(f"<circle class='pareto' cx='{x:.1f}' cy='{y:.1f}' r='9'/>")
        low, high = (vertical(min(value, top)) for value in (at.low_ms, at.high_ms))
        said = f"{words(found.knobs, setting)}: {at.rate_per_s:.0f}/s, p99 {at.p99_ms:.1f} ms"
        marks.append(
            f"<line class='interval' x1='{x:.1f}' x2='{x:.1f}' y1='{low:.1f}' y2='{high:.1f}'/>"
            f"<circle class='{kind}' cx='{x:.1f}' cy='{y:.1f}' r='5'><title>{escape(said)}</title></circle>"
        )
    for kind, points in curves.items():
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(points))
        marks.insert(0, f"<polyline class='curve {kind}' points='{places}'/>")
    marks.insert(0, f"<path class='curve pareto' d='{_stairs(sorted(steps))}'/>")
    ticks = page.ticks(horizontal, vertical)
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='p99 against rate'>{ticks}"
        f"<line class='limit' x1='{LEFT}' x2='{WIDTH - EDGE}' y1='{limit:.1f}' y2='{limit:.1f}'/>{''.join(marks)}"
        f"<text x='{(LEFT + WIDTH) / 2}' y='{HEIGHT - 8}' text-anchor='middle'>requests per second</text>"
        f"<text x='{LEFT - 58}' y='14'>p99, ms</text></svg>"
    )


def _front(measured: Sequence[Measured]) -> set[int]:
    """Returns which measurements no other dominates, which had as high a rate with as low a p99 and one of them better.

    Those whose p99 is of a part of the requests are none.
    """
    sound = [number for number, at in enumerate(measured) if at.sound]
    points = [(-measured[number].rate_per_s, measured[number].p99_ms) for number in sound]
    return {sound[place] for place in front(points)}


def _stairs(places: Sequence[tuple[float, float]]) -> str:
    """Returns a path through places, from left to right: a p99 holds for all lower rates down to the next one."""
    if not places:
        return ""
    (x, y), *rest = places
    return f"M{x:.1f},{y:.1f}" + "".join(f"V{below:.1f}H{right:.1f}" for right, below in rest)
