"""Plans of the travelling graphs, built by the project's own builder, each in a process that may fail or be ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tritonpress_generator.plans.runner import Runner, fitting, tensorrt

from visit import parity
from visit.shapes import BATCHES, LENGTHS
from visit.travelling import Weights

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
TYPES: dict[str, list[str]] = {"fp32": [], "fp16": ["FLOAT16"], "int8": ["FLOAT16", "INT8"]}
_OPTIMAL_BATCH = 32
"""A batch of this many sequences fills a GPU at all lengths but the shortest."""


class BuildError(Exception):
    """The builder made no plan; one line has its last words."""


def profiles(lengths: Sequence[int] = LENGTHS) -> list[dict[str, list[int]]]:
    """Returns a profile for each length, as the project has them for buckets."""
    return [{"batch": [1, _OPTIMAL_BATCH, max(BATCHES)], "length": [length] * 3} for length in lengths]


def tactic_sources() -> list[str] | None:
    """Returns the sources of kernels for TensorRT 8.5, whose kit has neither cuBLAS nor cuDNN; None for later ones."""
    return ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"] if tensorrt().__version__.startswith("8.5") else None


def graph(work: Path, name: str, rung: str) -> Path:
    """Returns where the graph of the shape `name` for `rung` lies once it is filled: FP16 is made of FP32's."""
    return work / "shapes" / name / f"model.{'int8' if rung == 'int8' else 'fp32'}.onnx"


def filled(visit: Path, work: Path, name: str, rung: str) -> Path:
    """Returns the graph of the shape `name` for `rung`, with its weights, in the folder where its plans are built."""
    full = graph(work, name, rung)
    if not full.exists():
        model = onnx.load(visit / "shapes" / name / full.name)
        Weights(visit).put_back(model)
        full.parent.mkdir(parents=True, exist_ok=True)
        new = full.with_suffix(f".{os.getpid()}")
        onnx.save(model, new)
        new.replace(full)
    return full


def path(work: Path, name: str, rung: str, lengths: Sequence[int] = LENGTHS) -> Path:
    """Returns where the plan of a shape for some lengths lies once it is built."""
    few = "" if tuple(lengths) == LENGTHS else "".join(f".{length}" for length in lengths)
    return work / "shapes" / name / f"model.{rung}{few}.plan"


def label(plan: Path) -> str:
    """Returns a plan's rung, and its lengths where they are not all: `int8.384` of `model.int8.384.plan`."""
    return plan.name.removeprefix("model.").removesuffix(".plan")


def build(visit: Path, work: Path, name: str, rung: str, *, within_s: float, lengths: Sequence[int] = LENGTHS) -> Path:
    """Returns the plan of a shape, built unless it is there.

    Raises:
        BuildError: There is none, or not within the time.
    """
    plan = path(work, name, rung, lengths)
    if plan.exists():
        return plan
    source = filled(visit, work, name, rung)
    settings = {
        "rungs": [{"name": label(plan), "model": source.name, "types": TYPES[rung]}],
        "inputs": INPUTS,
        "profiles": profiles(lengths),
        "shapes": [[1, lengths[0]]],
        "tactic_sources": tactic_sources(),
    }
    described = source.with_name(f"{label(plan)}.json")
    described.write_text(json.dumps(settings), encoding="utf-8")
    run_builder(described, within_s=within_s)
    return plan


def run_builder(settings: Path, *, within_s: float) -> str:
    """Returns what the builder says.

    Raises:
        BuildError: It ends with another status than 0, or takes longer.
    """
    command = [sys.executable, "-m", "tritonpress_generator.plans", str(settings)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, within_s), check=False)
    except subprocess.TimeoutExpired as exc:
        raise BuildError(f"{settings.name}: must be built within {within_s:.0f} s") from exc
    if ran.returncode != 0:
        said = " ".join((ran.stderr or ran.stdout).split())
        raise BuildError(f"{settings.name}: the builder ended with status {ran.returncode} ({said[-500:]})")
    return ran.stdout


def loaded(plan: Path) -> Callable[[dict[str, parity.Array]], dict[str, Any]]:
    """Returns what runs a plan on padded batches of every length that its profiles hold."""
    stamp = json.loads(plan.with_name(f"{plan.name}.json").read_text(encoding="utf-8"))
    return fitting(Runner(tensorrt(), plan.read_bytes(), stamp), stamp["profiles"], parity.OF_TOKENS)


def compare(visit: Path, plan: Path, name: str, rung: str) -> dict[str, float]:
    """Returns how far the plan of a shape is from what ONNX Runtime answers (`parity.differences`)."""
    return parity.differences(loaded(plan), parity.answers(visit / "shapes" / name / "answers.npz", rung))


def build_workload(visit: Path, work: Path, name: str, *, within_s: float) -> Path:
    """Returns the version folder of a workload's engine, copied to `work`, with its ladder of plans built and timed.

    Raises:
        BuildError: The builder makes none, or not within the time.
    """
    (source,) = (visit / "workloads" / name / "repository").glob("*/1/plan.json")
    folder = work / "workloads" / name / source.parent.relative_to(visit / "workloads" / name)
    if (folder / "rungs.txt").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(source.read_text(encoding="utf-8"))
    for rung in settings["rungs"]:
        model = onnx.load(source.parent / rung["model"])
        Weights(visit).put_back(model)
        onnx.save(model, folder / rung["model"])
    settings["tactic_sources"] = tactic_sources()
    (folder / source.name).write_text(json.dumps(settings), encoding="utf-8")
    run_builder(folder / source.name, within_s=within_s)
    return folder


def answer(plan: Path, recorded: Path, out: Path) -> dict[str, float]:
    """Writes what a workload's plan answers to the gate's data into `out`; returns how far it is from FP32's.

    Args:
        plan: In the version folder where it was built.
        recorded: What the gate's data become, and FP32's answers (`prepare.Recorded`).
        out: `NUMBER/out/NAME` for each.
    """
    settings = json.loads(plan.with_name("plan.json").read_text(encoding="utf-8"))
    run = fitting(Runner(tensorrt(), plan.read_bytes()), settings["profiles"], settings["of_tokens"])
    asked = parity.recorded(recorded)
    answers = [dict(run(feed)) for feed, _ in asked]
    arrays = {f"{number}/out/{n}": tensor for number, given in enumerate(answers) for n, tensor in given.items()}
    np.savez_compressed(out, **arrays)
    given = iter(answers)
    return parity.differences(lambda _: next(given), asked, settings["of_tokens"])
