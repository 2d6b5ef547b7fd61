"""Plans behind the embedded Triton: texts through all steps of a workload, and token ids to the engine alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tritonpress_server import TritonServer

from visit import parity, plans
from visit.closed_loop import load
from visit.records import Records
from visit.shapes import SHAPES

IN_FLIGHT = (1, 4, 16, 64, 256)
SECONDS = 3.0
_NEEDS_S = 12.0
_REQUESTS = 64


def run(records: Records, visit: Path) -> None:
    """Serves the plans that the steps before have built: real ones, and BERT-Large's in the same repository."""
    for source in sorted((visit / "workloads").glob("*")):
        version = next((records.work / "workloads" / source.name).glob("repository/*/1"), None)
        (settings,) = (source / "repository").glob("*/1/plan.json")
        reads = json.loads(settings.read_text(encoding="utf-8"))
        # Where it reads and gives what BERT-Large's plan does, at the same borders, the repository serves that too.
        same = (reads["inputs"], reads["of_tokens"]) == (plans.INPUTS, [*parity.OF_TOKENS])
        served = {"large": records.work / "shapes" / "large"} if same else {}
        for rung in ("int8", "fp16"):
            for name, folder in (served | {source.name: version}).items():
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


def token_requests(inputs: Sequence[str], length: int, path: Path) -> Path:
    """Returns `path` after writing requests of one sequence of `length` random tokens each."""
    generator = np.random.default_rng(0)
    full = {"attention_mask": [[1] * length], "token_type_ids": [[0] * length]}
    requests = []
    for _ in range(_REQUESTS):
        every = {"input_ids": generator.integers(1000, SHAPES["large"].vocabulary, (1, length)).tolist()} | full
        requests.append({name: every[name] for name in inputs})
    path.write_text(json.dumps(requests), encoding="utf-8")
    return path


def _serve(records: Records, name: str, source: Path, plan: Path) -> None:
    """Starts a server with `plan` and asks it at every load; a server that does not start is a line too."""

    def serve() -> dict[str, Any]:
        folder, engine = repository(source, plan, records.work / "served")
        settings = json.loads((folder / engine / "1" / "plan.json").read_text(encoding="utf-8"))
        longest = max(profile["length"][2] for profile in settings["profiles"])
        tokens = token_requests(settings["inputs"], longest, records.work / "tokens.json")
        with TritonServer(folder, log_path=records.work / "triton.log", startup_timeout_s=120) as server:
            asked = {"engine": (engine, tokens), "texts": (source.name, source / "requests.json")}
            for what, (model, requests) in asked.items():
                for in_flight in IN_FLIGHT:
                    measure = partial(load, server.grpc_url, model, requests, in_flight=in_flight, seconds=SECONDS)
                    records.item(f"{name}: {what}, {in_flight} in flight", measure, needs_s=_NEEDS_S)
        return {"plan": plan.name, "repository": source.name}

    records.item(f"{name}: server", serve, needs_s=60)
