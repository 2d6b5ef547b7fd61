"""What a visit measures, in its order: what it is for comes first, and the rest as long as there is time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from visit import parity, plans
from visit.contest import RefusalError, Worker, contest, image, module, started
from visit.records import IncompleteError, Records
from visit.shapes import BATCHES, LENGTHS, MEASURED

_FULL = (max(LENGTHS),)
"""The tokens of the aim: a plan for them alone is built in a third of the time."""
_FIRST_POINTS = [(batch, length) for length in _FULL for batch in sorted(BATCHES, reverse=True)]
_POINTS = sorted(((b, n) for b in BATCHES for n in LENGTHS), key=lambda p: (p not in _FIRST_POINTS, -p[0] * p[1]))
"""Batches and lengths, those first without which a table says nothing."""
_BUILD_NEEDS_S, _TINY_S, _LADDER_S = 30.0, 60.0, 240.0
_READY_S, _ANSWERS_S = 90.0, 120.0
_CONTEST_NEEDS_S, _POINT_NEEDS_S = 20.0, 5.0


@dataclass(frozen=True)
class Visit:
    """What a call has."""

    folder: Path
    """What travelled (`prepare.py`)."""
    records: Records
    python: str
    """The interpreter that has torch with CUDA."""
    shapes: Sequence[str] = MEASURED
    build_s: float = 150.0
    """The most that a plan may take to build."""

    def within(self, limit_s: float) -> float:
        """Returns `limit_s`, or what is left of the call."""
        return min(limit_s, self.records.left_s)


def run(visit: Visit, only: Sequence[str] = ()) -> None:
    """Does the parts, or `only` those named, in their order; one that fails is a line and not the end."""
    with _filling(visit):
        for name, part in PARTS.items():
            if not only or name in only:
                with visit.records.surviving(f"part {name}"):
                    part(visit)


def fill(folder: Path, work: Path, shapes: Sequence[str] = MEASURED) -> None:
    """Puts the weights into the graphs that the parts will ask for, so that the GPU does not wait for it."""
    for name in shapes:
        for rung in ("fp16", "int8"):
            plans.filled(folder, work, name, rung)


@contextmanager
def _filling(visit: Visit) -> Iterator[None]:
    """Fills the graphs beside the first parts."""
    work = visit.records.work
    command = [sys.executable, "-m", "visit", "fill", str(visit.folder), "--work", str(work), "--shapes", *visit.shapes]
    with (work / "fill.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.kill()


def _parity(visit: Visit) -> None:
    """A tiny encoder in every precision, against ONNX Runtime's answers on the CPU."""
    for rung in plans.TYPES:
        _built(visit, "tiny", rung, limit_s=_TINY_S)


def _precision(rung: str, visit: Visit) -> None:
    """The first shape in `rung` at full length."""
    _plans_contest(visit, visit.shapes[0], rung, _FULL, _FIRST_POINTS)


def _serving(visit: Visit) -> None:
    """The first shape behind the embedded Triton, at two loads; in FP16 where there is no INT8."""
    name = visit.shapes[0]
    for rung in ("int8", "fp16"):
        plan = plans.path(visit.records.work, name, rung, _FULL)
        if plan.exists():
            _served(visit, name, plan, first=True)
            return
    visit.records.write(f"{name}: server", "not run", why="no plan was built")


def _rates(visit: Visit) -> None:
    """The matrix units' own rate."""

    def rate(kind: str) -> dict[str, Any]:
        command = [visit.python, *module("torch_worker"), "tiny"]
        with Worker(command, ready_s=visit.within(_READY_S), environment=image()) as worker:
            return worker.about | worker.ask({"matrix": kind}, within_s=visit.within(_READY_S))

    for kind in ("fp16", "int8"):
        visit.records.item(f"matrix rate {kind}", partial(rate, kind), needs_s=10)


def _peers(visit: Visit) -> None:
    """The first shape at full length, against torch and ONNX Runtime."""
    _peers_contest(visit, visit.shapes[0], _FULL, _FIRST_POINTS)


def _workloads(visit: Visit) -> None:
    """A recipe's ladder with real weights, built as its users do, and what each rung answers to the gate's data."""
    records = visit.records
    for folder in sorted((visit.folder / "workloads").glob("*")):
        name = folder.name
        records.item(f"{name}: ladder", partial(_ladder, visit, name), needs_s=_BUILD_NEEDS_S)
        for plan in sorted((records.work / "workloads" / name).glob("repository/*/1/model.*.plan")):
            answers = partial(_answers, visit, plan, folder / "feeds.npz", f"{name}.{plans.label(plan)}.npz")
            records.item(f"{name}: answers of {plans.label(plan)}", answers, needs_s=_POINT_NEEDS_S)


def _ladder(visit: Visit, name: str) -> dict[str, Any]:
    version = plans.build_workload(visit.folder, visit.records.work, name, within_s=visit.within(_LADDER_S))
    found: dict[str, Any] = json.loads((version / "rungs.json").read_text(encoding="utf-8"))
    return found


def _answers(visit: Visit, plan: Path, recorded: Path, kept: str) -> dict[str, Any]:
    """Has the answers written, which come back, and returns how far they are."""
    path = visit.records.kept / kept
    found = _asked(visit, {"answer": [str(plan), str(recorded), str(path)]})
    shutil.copy(path, visit.records.out)
    return found


def _shapes(visit: Visit) -> None:
    """The other shapes, and the first one, at every length."""
    for name in (*visit.shapes[1:], visit.shapes[0]):
        for rung in ("fp16", "int8"):
            _plans_contest(visit, name, rung, LENGTHS, _POINTS)


def _loads(visit: Visit) -> None:
    """Texts and token ids at increasing load: a recipe's own plans, and the first shape's in their place."""
    work, first = visit.records.work, visit.shapes[0]
    for rung in ("int8", "fp16"):
        _served(visit, first, plans.path(work, first, rung))
        for plan in sorted((work / "workloads").glob(f"*/repository/*/1/model.{rung}.plan")):
            _served(visit, plan.parents[3].name, plan)


def _all_peers(visit: Visit) -> None:
    """Every shape at every length, against torch and ONNX Runtime."""
    for name in visit.shapes:
        _peers_contest(visit, name, LENGTHS, _POINTS)


PARTS: dict[str, Callable[[Visit], None]] = {
    "parity": _parity,
    "fp16": partial(_precision, "fp16"),
    "int8": partial(_precision, "int8"),
    "serving": _serving,
    "rates": _rates,
    "peers": _peers,
    "workloads": _workloads,
    "shapes": _shapes,
    "loads": _loads,
    "all-peers": _all_peers,
}
"""In their order."""


def _served(visit: Visit, name: str, plan: Path, *, first: bool = False) -> None:
    """Asks the server of a plan in a repository that travelled: a workload's own, or the first that suits a shape."""
    if not plan.exists():
        return
    records, named = visit.records, f"{name} {plans.label(plan)}"
    with records.surviving(f"{named}: server"):
        # Here, so that the parts before it need none of its packages.
        from visit import serving

        own = visit.folder / "workloads" / name
        source = own if own.exists() else next(iter(serving.suiting(visit.folder)), None)
        if source is None:
            records.write(f"{named}: server", "not run", why="no repository that suits it has travelled")
        else:
            in_flight = serving.FIRST_IN_FLIGHT if first else serving.IN_FLIGHT
            serving.run(records, source, named, plan, in_flight)


def _plans_contest(
    visit: Visit, name: str, rung: str, lengths: Sequence[int], points: Sequence[tuple[int, int]]
) -> None:
    """Builds the plan of a shape in `rung`, and measures it; INT8's against FP16's."""
    if _built(visit, name, rung, lengths) is None:
        return
    found = {kind: plans.path(visit.records.work, name, kind, lengths) for kind in ("fp16", rung)}
    _contest(visit, f"{name}: {rung}", _of_plans(found), points)


def _peers_contest(visit: Visit, name: str, lengths: Sequence[int], points: Sequence[tuple[int, int]]) -> None:
    graph = plans.graph(visit.records.work, name, "fp32")
    torch = [visit.python, *module("torch_worker"), name]
    peers = {
        "torch FP16, SDPA": torch,
        "torch FP16, compiled, CUDA graph": [*torch, "--compile"],
        "ONNX Runtime CUDA, FP32": [visit.python, *module("onnxruntime_worker"), str(graph)],
    }
    found = {kind: plans.path(visit.records.work, name, kind, lengths) for kind in ("fp16", "int8")}
    _contest(visit, f"{name}: peers", _of_plans(found), points, peers)


def _of_plans(found: Mapping[str, Path]) -> dict[str, list[str]]:
    """Returns the commands of the workers of plans, as far as they exist, with and without CUDA graphs."""
    commands: dict[str, list[str]] = {}
    for rung, plan in found.items():
        if plan.exists():
            command = [sys.executable, *module("tensorrt_worker"), str(plan)]
            commands |= {f"TensorRT {rung}": command, f"TensorRT {rung}, CUDA graph": [*command, "--cuda-graph"]}
    return commands


def _built(
    visit: Visit, name: str, rung: str, lengths: Sequence[int] = LENGTHS, *, limit_s: float | None = None
) -> Path | None:
    """Returns the plan of a shape, with how long it took and how far its answers are in the records; None: no plan."""
    records = visit.records
    plan = plans.path(records.work, name, rung, lengths)
    label = plans.label(plan)

    def build() -> dict[str, Any]:
        within_s = visit.within(visit.build_s if limit_s is None else limit_s)
        plans.build(visit.folder, records.work, name, rung, within_s=within_s, lengths=lengths)
        stamp = json.loads(plan.with_name(f"{plan.name}.json").read_text(encoding="utf-8"))
        keys = ("gpu", "tensorrt", "driver", "flags", "layers", "built_in_s", "warnings")
        return {key: stamp[key] for key in keys} | {"bytes": plan.stat().st_size}

    def near() -> dict[str, Any]:
        found = _asked(visit, {"compare": [str(visit.folder), str(plan), name, rung]})
        try:
            parity.check(rung, found)
        except parity.ParityError as exc:
            raise IncompleteError(str(exc), found) from exc
        return found

    records.item(f"{name}: plan {label}", build, needs_s=_BUILD_NEEDS_S)
    if not plan.exists():
        return None
    records.item(f"{name}: parity {label}", near, needs_s=_POINT_NEEDS_S)
    return plan


def _asked(visit: Visit, request: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `answers_worker` says, whose end is not the visit's."""
    with Worker([sys.executable, *module("answers_worker")], ready_s=visit.within(_READY_S)) as worker:
        return worker.ask(request, within_s=visit.within(_ANSWERS_S))


def _contest(
    visit: Visit,
    name: str,
    of_plans: Mapping[str, list[str]],
    points: Sequence[tuple[int, int]],
    peers: Mapping[str, list[str]] | None = None,
) -> None:
    """Measures plans and their peers, by command, at the points that have no figures yet."""
    records = visit.records
    left = [point for point in points if not records.done(_item(name, point))]
    left = [point for point in left if of_plans and records.suffices(_item(name, point), _CONTEST_NEEDS_S)]
    if not left:
        return
    commands = {**of_plans, **(peers or {})}
    environments = dict.fromkeys(peers or {}, image())
    workers, failed = started(commands, environments, ready_s=visit.within(_READY_S))
    late = {}
    for contestant, why in failed.items():
        if isinstance(why, RefusalError):
            records.write(f"{name}, {contestant}", "not run", why=str(why))
        else:
            late[contestant] = str(why)
    with ExitStack() as stack:
        for worker in workers.values():
            stack.enter_context(worker)
        for point in left if of_plans.keys() & workers.keys() else []:
            measure = partial(contest, workers, *point, left_s=lambda: records.left_s, late=late)
            records.item(_item(name, point), measure, needs_s=_POINT_NEEDS_S)


def _item(name: str, point: tuple[int, int]) -> str:
    batch, length = point
    return f"{name} {batch}x{length}"
