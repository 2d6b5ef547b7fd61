"""Recipes of searches over tiny trained encoders, and what a search has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_training import change, write_training
from tritonpress_generator import cli

QUICK: dict[str, Any] = {"objective": "size", "budget_minutes": 30, "proposals": 4, "rounds": 1, "slice_s": 0.01}
SPACE: dict[str, Any] = {"layers": [2, 1], "ffn": [0.0, 0.5], "heads": [0.0, 0.5]}
PRUNE: dict[str, Any] = {"ffn": 0.1, "round_to": 8, "samples": 40, "reconstruct": False}
COARSE = {"fixed_point": {"bits": 8, "power_of_two_scales": True, "samples": 64}}
"""What changes answers."""
DISTILL: dict[str, Any] = {"epochs": 2, "batch_size": 8, "precision": "fp32", "evaluations": 1, "learning_rate": 2e-3}


def trained(folder: Path, **settings: Any) -> Path:
    """Returns the recipe of a search over a checkpoint that was trained."""
    recipe = write_training(folder, "recommendation")
    assert cli.main(["finetune", str(recipe), "--out", str(folder / "trained")]) == 0
    gate = {"dataset": "test.jsonl", "metric": "ndcg@10", "keep": 0.5, "confidence": "point"}
    graph = ["fuse", {"quantize": {"samples": 64}}]
    return change(recipe, checkpoint={"source": "./trained"}, graph=graph, gate=gate, **settings)


def memorised(folder: Path, **settings: Any) -> Path:
    """Returns the recipe of a search over a model that answers what it was trained on; what is cut, it forgets."""
    recipe = write_training(folder, "question_answering", epochs=80, evaluations=1)
    change(recipe, data={"validation": ["train.json"]})
    assert cli.main(["finetune", str(recipe), "--out", str(folder / "trained")]) == 0
    gate = {"dataset": "train.json", "metric": "f1", "keep": 0.9, "confidence": "point"}
    return change(recipe, checkpoint={"source": "./trained"}, graph=["fuse"], gate=gate, **settings)


def copied(source: Path, name: str, **settings: Any) -> Path:
    """Returns a recipe of its own beside `source`."""
    path = source.with_name(f"{name}.yaml")
    path.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return change(path, **settings)


def results(work: Path) -> list[dict[str, Any]]:
    """Returns the lines of the state in `work`."""
    (path,) = work.glob("search-*/against-*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_times(lines: list[dict[str, Any]]) -> list[Any]:
    """Returns what of the state is the same again: not how long something took."""
    timed = {"seconds", "throughput", "latency", "to_best"}
    return [
        (one["kind"], one["candidate"], {k: v for k, v in one["result"].items() if k not in timed}) for one in lines
    ]
