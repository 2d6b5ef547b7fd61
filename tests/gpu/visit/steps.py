"""The steps of a visit, in their order: parity, fp16, int8, serving."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from visit import parity, plans
from visit.contest import Worker, WorkerError, contest, module, path_of_package
from visit.records import Records
from visit.shapes import BATCHES, LENGTHS

SHAPES = ("large", "base", "minilm")
"""What is measured: the first is what the aim is about."""
POINTS = sorted(
    ((b, n) for b in BATCHES for n in LENGTHS), key=lambda p: (p not in {(128, 384), (1, 128)}, -p[0] * p[1])
)
"""Batches and lengths, those first without which a table says nothing."""
_BUILD_S, _READY_S = 30.0, 120.0
_POINT_S = 90.0


def fill(visit: Path, work: Path) -> None:
    """Puts the weights into the graphs that the steps will ask for, so that the GPU does not wait for it."""
    for rung in ("fp16", "int8"):
        for name in SHAPES:
            plans.filled(visit, work, name, rung)


def run_parity(records: Records, visit: Path, out: Path) -> None:
    """A small plan, and workloads' with real weights, against ONNX Runtime's answers on the CPU."""
    for rung in plans.TYPES:
        _built(records, visit, "tiny", rung)
    for folder in sorted((visit / "workloads").glob("*")):
        _workload(records, visit, folder.name, out)


def _workload(records: Records, visit: Path, name: str, out: Path) -> None:
    """Builds a workload's ladder as its users do, and keeps what each rung answers to the gate's data."""

    def ladder() -> dict[str, Any]:
        version = plans.build_workload(visit, records.work, name, within_s=records.left_s)
        found: dict[str, Any] = json.loads((version / "rungs.json").read_text(encoding="utf-8"))
        return found

    records.item(f"{name}: ladder", ladder, needs_s=_BUILD_S)
    for plan in sorted((records.work / "workloads" / name).glob("repository/*/1/model.*.plan")):
        rung = plan.name.split(".")[1]
        asked = visit / "workloads" / name / "feeds.npz"
        answer = partial(plans.answer, plan, asked, out / f"{name}.{rung}.npz")
        records.item(f"{name}: answers of {rung}", answer)


def run_fp16(records: Records, visit: Path, python: str) -> None:
    """FP16 plans against torch, and the matrix units' own rate."""

    def rate(kind: str) -> dict[str, Any]:
        with Worker([python, *module("torch_worker"), "tiny"], ready_s=_READY_S, environment=image()) as worker:
            return worker.about | worker.ask({"matrix": kind}, within_s=60)

    for kind in ("fp16", "int8"):
        records.item(f"matrix rate {kind}", partial(rate, kind), needs_s=10)
    for name in SHAPES:
        plan = _built(records, visit, name, "fp16")
        graph = plans.graph(records.work, name, "fp32")
        peers = {
            "torch FP16, SDPA": [python, *module("torch_worker"), name],
            "torch FP16, compiled, CUDA graph": [python, *module("torch_worker"), name, "--compile"],
            "ONNX Runtime CUDA, FP32": [python, *module("onnxruntime_worker"), str(graph)],
        }
        _contest(records, name, {"fp16": plan} if plan else {}, peers)


def run_int8(records: Records, visit: Path) -> None:
    """INT8 plans against the FP16 plans of the step before."""
    for name in SHAPES:
        plan = _built(records, visit, name, "int8")
        fp16 = records.work / "shapes" / name / "model.fp16.plan"
        found = {"fp16": fp16 if fp16.exists() else None, "int8": plan}
        _contest(records, name, {rung: path for rung, path in found.items() if path is not None}, {})


def _built(records: Records, visit: Path, name: str, rung: str) -> Path | None:
    """Returns the plan of a shape, with how long it took and how far its answers are in the records; None: no plan."""

    def build() -> dict[str, Any]:
        built = plans.build(visit, records.work, name, rung, within_s=records.left_s)
        stamp = json.loads(built.with_name(f"{built.name}.json").read_text(encoding="utf-8"))
        keys = ("gpu", "tensorrt", "driver", "flags", "layers", "built_in_s", "warnings")
        return {key: stamp[key] for key in keys} | {"bytes": built.stat().st_size}

    def near() -> dict[str, Any]:
        found = plans.compare(visit, path, name, rung)
        parity.check(rung, found)
        return found

    records.item(f"{name}: plan {rung}", build, needs_s=_BUILD_S)
    path = records.work / "shapes" / name / f"model.{rung}.plan"
    if not path.exists():
        return None
    records.item(f"{name}: parity {rung}", near)
    return path


def _contest(records: Records, name: str, of_plans: Mapping[str, Path], peers: Mapping[str, list[str]]) -> None:
    """Measures plans, with and without CUDA graphs, and their peers at every batch and length."""
    commands: dict[str, list[str]] = {}
    for rung, plan in of_plans.items():
        command = [sys.executable, *module("tensorrt_worker"), str(plan)]
        commands |= {f"TensorRT {rung}": command, f"TensorRT {rung}, CUDA graph": [*command, "--cuda-graph"]}
    with ExitStack() as stack:
        workers = {}
        for contestant, command in {**commands, **peers}.items():
            try:
                ours = contestant in commands
                worker = Worker(command, ready_s=_READY_S, environment=None if ours else image())
            except (WorkerError, OSError) as exc:
                records.write(f"{name}: {contestant}", "not run", why=str(exc))
                continue
            workers[contestant] = stack.enter_context(worker)
        for batch, length in POINTS if workers else []:
            point = partial(contest, workers, batch, length, within_s=_POINT_S)
            records.item(f"{name}: {batch}x{length}", point, needs_s=5)


def image() -> dict[str, str]:
    """Returns the environment of the machine's own Python: without the kit's interpreter and libraries."""
    kit = str(Path(os.environ["PYTHONHOME"]).parent) if "PYTHONHOME" in os.environ else None
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    if kit is not None:
        for name in ("LD_LIBRARY_PATH", "PATH"):
            parts = [part for part in kept.get(name, "").split(os.pathsep) if part and not part.startswith(kit)]
            kept[name] = os.pathsep.join(parts)
        if not kept["LD_LIBRARY_PATH"]:
            del kept["LD_LIBRARY_PATH"]
    return kept | {"PYTHONPATH": path_of_package()}
