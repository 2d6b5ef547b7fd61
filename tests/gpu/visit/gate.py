"""Holds what plans answered on the GPU to the gate, here, where the labels and the task's metrics are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tritonpress_generator import gate as gates
from tritonpress_generator.errors import GateError
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.progress import Progress
from tritonpress_generator.table import render
from tritonpress_generator.workload import Workload

from visit import parity, prepare


def table(recipe_path: Path, visit: Path, records: Path) -> str:
    """Returns the metric of every plan of a recipe's workload, and whether it keeps what was agreed."""
    workload = Workload.load(prepare.for_tensorrt(recipe_path, prepare.RELEASE), Progress())
    name, gate = workload.recipe.name, workload.recipe.gate
    asked = parity.recorded(visit / "workloads" / name / "feeds.npz")
    answers = workload.answers(workload.baseline)
    baseline = workload.scores(answers, answers)
    before = baseline.metrics[gate.metric]
    rows = [["torch FP32", f"{before:.4f}", "", ""]]
    for path in sorted(records.glob(f"{name}.*.npz")):
        scores = workload.scores(workload.answers(replayed(asked, path)), answers)
        try:
            gates.check(gate, baseline, scores)
            verdict = "kept"
        except GateError:
            verdict = "refused"
        served = scores.metrics[gate.metric]
        share = f"{served / before:.1%}" if before else ""
        rows.append([path.name.split(".")[1], f"{served:.4f}", share, verdict])
    return render(["plan", gate.metric, "of FP32", f"keep {gate.keep:g}"], rows)


def replayed(asked: list[tuple[dict[str, Array], dict[str, Array]]], path: Path) -> Infer:
    """Returns an `Infer` that answers what the plan answered, which are in `path` in the order of `asked`."""
    answers: dict[bytes, dict[str, Array]] = {}
    with np.load(path) as arrays:
        for number, (feed, outputs) in enumerate(asked):
            answers[_key(feed)] = {name: arrays[f"{number}/out/{name}"] for name in outputs}

    return lambda feed: answers[_key(feed)]


def _key(feed: Mapping[str, Array]) -> bytes:
    return feed["input_ids"].astype(np.int32).tobytes()
