"""The tables for docs/gpu.md, of what a visit has written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from visit.records import read
from visit.shapes import SHAPES

NOT_SHOWN = (
    "FP8, strong typing, and everything of TensorRT 10 and 11: the kit's TensorRT is 8.5.3.1",
    "sequences packed without padding: the plans take padded batches, MLPerf's figure of 9,224 is of packed ones",
    "several GPUs, other GPUs than the one named, NVIDIA's own `tensorrt` backend of Triton",
)
"""What no step of a visit can show."""
_CONTESTS = {"fp16": "FP16 plans", "int8": "INT8 plans against FP16's", "peers": "plans against torch and ONNX Runtime"}
_OF_MATRIX = {"fp16": "matrix rate fp16", "int8": "matrix rate int8"}


def render(folder: Path) -> str:
    """Returns the tables in Markdown."""
    entries = read(folder)
    done = {entry["item"]: entry for entry in entries if entry["status"] == "done"}
    contests = [_throughput(name, of, entries, done) for of in _CONTESTS for name in SHAPES]
    parts = [_machine(done), _plans(entries), *contests, _serving(entries)]
    return "\n\n".join([part for part in parts if part] + [_missing(entries)]) + "\n"


def _machine(done: dict[str, Any]) -> str:
    rows = []
    for kind, item in _OF_MATRIX.items():
        if item in done:
            entry = done[item]
            what = f"{entry['device']}, torch {entry['torch']}, {entry['side']}³, random numbers"
            rows.append([f"{kind.upper()} products", f"{entry['tera_operations_per_s']:.0f}", what])
    return _table(["the card's own rate", "10¹² operations/s", "measured with"], rows) if rows else ""


def _plans(entries: Sequence[dict[str, Any]]) -> str:
    rows = []
    for entry in entries:
        name, _, rest = entry["item"].partition(": ")
        if not rest.startswith("plan "):
            continue
        rung = rest.removeprefix("plan ")
        parity = next((e for e in entries if e["item"] == f"{name}: parity {rung}"), None)
        built = entry["status"] == "done"
        near = ["", ""]
        if parity and "cosine" in parity:
            near = [f"{parity['cosine']:.5f}", f"{parity['relative_error']:.4f}"]
        verdict = entry["status"] if not built else "parity " + ("not run" if parity is None else parity["status"])
        size = [f"{entry['built_in_s']:.0f}", f"{entry['bytes'] / 2**20:.0f}"] if built else ["", ""]
        rows.append([name, rung, *size, *near, verdict])
    header = ["shape", "plan", "built in s", "MiB", "least cosine", "relative error", ""]
    return _table(header, rows) if rows else ""


def _throughput(name: str, of: str, entries: Sequence[dict[str, Any]], done: dict[str, Any]) -> str:
    prefix = f"{name}: {of} "
    points = {
        entry["item"].removeprefix(prefix): entry["sequences_per_s"]
        for entry in entries
        if entry["item"].startswith(prefix) and "sequences_per_s" in entry
    }
    if not points:
        return ""
    contestants = list(dict.fromkeys(contestant for point in points.values() for contestant in point))
    rows = []
    for point, figures in sorted(points.items(), key=lambda item: [int(part) for part in item[0].split("x")]):
        cells = [_figure(figures.get(contestant)) for contestant in contestants]
        rows.append([point, *cells, _share(name, point, figures, done)])
    what = f"{_CONTESTS[of]}, the median and the middle 80 % of the rounds"
    return f"{name}, sequences/s: {what} (random weights: speed does not depend on them)\n\n" + _table(
        ["batch × tokens", *contestants, "of the matrix rate"], rows
    )


def _figure(found: dict[str, Any] | None) -> str:
    if found is None or "error" in found:
        return "" if found is None else "failed"
    return f"{found['median']:,.0f} [{found['low']:,.0f}–{found['high']:,.0f}]"


def _share(name: str, point: str, figures: dict[str, Any], done: dict[str, Any]) -> str:
    """Returns which share of the card's rate the best plan of each precision does."""
    shares = []
    for kind, item in _OF_MATRIX.items():
        best = max(_rates(figures, kind), default=0.0)
        if best and item in done:
            needed = SHAPES[name].operations(int(point.split("x")[1])) * best / 1e12
            shares.append(f"{kind.upper()} {needed / done[item]['tera_operations_per_s']:.0%}")
    return ", ".join(shares)


def _serving(entries: Sequence[dict[str, Any]]) -> str:
    found = {entry["item"]: entry for entry in entries}
    rows = []
    for item, entry in found.items():
        if "requests_per_s" in entry:
            name, _, what = item.partition(": ")
            figures = [f"{entry['requests_per_s']:,.0f}", f"{entry['p50_ms']:.1f}", f"{entry['p99_ms']:.1f}"]
            rows.append(
                [name, what.partition(",")[0], str(entry["in_flight"]), *figures, _loss(name, what, entry, found)]
            )
    header = ["served", "asked", "in flight", "requests/s", "p50 ms", "p99 ms", "of the plan alone at 32x384"]
    return _table(header, rows) if rows else ""


def _loss(name: str, what: str, entry: dict[str, Any], found: dict[str, Any]) -> str:
    """Returns what is left of the plan's own rate, where one-sequence requests of the same length ask the engine."""
    shape, _, label = name.partition(" ")
    rung = label.partition(".")[0]
    alone = _rates(found.get(f"{shape}: {rung} 32x384", {}).get("sequences_per_s", {}), rung)
    return f"{entry['requests_per_s'] / max(alone):.0%}" if alone and what.startswith("engine") else ""


def _rates(figures: dict[str, Any], rung: str) -> list[float]:
    """Returns the sequences/s of the plans of `rung`, with and without CUDA graphs."""
    of = (found for contestant, found in figures.items() if contestant.startswith(f"TensorRT {rung}"))
    return [found["median"] for found in of if "median" in found]


def _missing(entries: Iterable[dict[str, Any]]) -> str:
    lines = [f"- {entry['item']}: {entry['status']}: {entry['why']}" for entry in entries if entry["status"] != "done"]
    return "Not shown:\n\n" + "\n".join([*lines, *(f"- {line}" for line in NOT_SHOWN)])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
