"""Plans behind the embedded Triton: texts through all steps of a workload, and token ids to the engine alone."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tritonpress_server import TritonServer

from visit.closed_loop import load
from visit.records import Records
from visit.shapes import LENGTHS, SHAPES

IN_FLIGHT = (1, 4, 16, 64, 256)
SECONDS = 3.0
_NEEDS_S = 12.0
_REQUESTS = 64


def run(records: Records, visit: Path) -> None:
    """Serves the plans that the steps before have built: real ones, and BERT-Large's in the same repository."""
    for source in sorted((visit / "workloads").glob("*")):
        version = next((records.work / "workloads" / source.name).glob("repository/*/1"), None)
        # The workload's tokenizer and borders are BERT's too, and so its repository serves a plan of that size.
        large = records.work / "shapes" / "large"
        for rung in ("int8", "fp16"):
            for name, folder in (("large", large), (source.name, version)):
                plan = None if folder is None else folder / f"model.{rung}.plan"
                if plan is not None and plan.exists():
                    _serve(records, f"{name} {rung}", source, plan)
                else:
                    records.write(f"{name} {rung}: server", "not run", why="its plan was not built")


def repository(source: Path, plan: Path, folder: Path) -> tuple[Path, str]:
    """Returns a copy of a workload's repository that serves `plan`, and the name of its engine's model."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source / "repository", folder, ignore=shutil.ignore_patterns("*.onnx", "build_plan*"))
    (settings,) = folder.glob("*/1/plan.json")
    shutil.copyfile(plan, settings.with_name("model.plan"))
    shutil.copyfile(plan.with_name(f"{plan.name}.json"), settings.with_name("model.plan.json"))
    return folder, settings.parent.parent.name


def token_requests(length: int, path: Path) -> Path:
    """Returns `path` after writing requests of one sequence of `length` random tokens each."""
    generator = np.random.default_rng(0)
    ones, zeros = [[1] * length], [[0] * length]
    requests = [
        {
            "input_ids": generator.integers(1000, SHAPES["large"].vocabulary, (1, length)).tolist(),
            "attention_mask": ones,
            "token_type_ids": zeros,
        }
        for _ in range(_REQUESTS)
    ]
    path.write_text(json.dumps(requests), encoding="utf-8")
    return path


def _serve(records: Records, name: str, source: Path, plan: Path) -> None:
    """Starts a server with `plan` and asks it at every load; a server that does not start is a line too."""
    tokens = token_requests(LENGTHS[-1], records.work / "tokens.json")

    def serve() -> dict[str, Any]:
        folder, engine = repository(source, plan, records.work / "served")
        with TritonServer(folder, log_path=records.work / "triton.log", startup_timeout_s=120) as server:
            asked = {"engine": (engine, tokens), "texts": (source.name, source / "requests.json")}
            for what, (model, requests) in asked.items():
                for in_flight in IN_FLIGHT:
                    measure = partial(load, server.grpc_url, model, requests, in_flight=in_flight, seconds=SECONDS)
                    records.item(f"{name}: {what}, {in_flight} in flight", measure, needs_s=_NEEDS_S)
        return {"plan": plan.name, "repository": source.name}

    records.item(f"{name}: server", serve, needs_s=60)
