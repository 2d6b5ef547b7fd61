"""Plans behind the embedded Triton: texts through all steps of a workload, and token ids to the engine alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_server import Settings, TritonServer

from visit import closed_loop, parity, plans
from visit.records import Records
from visit.shapes import SHAPES

IN_FLIGHT = (1, 4, 16, 64, 256)
FIRST_IN_FLIGHT = (64, 256)
SECONDS = 3.0
_NEEDS_S, _SERVER_NEEDS_S, _STARTUP_S = 12.0, 30.0, 90.0
_REQUESTS = 64


def suiting(visit: Path) -> list[Path]:
    """Returns the workloads whose repository serves the random encoders too: it gives what they read."""
    found = []
    for source in sorted((visit / "workloads").glob("*")):
        settings = _settings(source)
        if (settings["inputs"], settings["of_tokens"]) == (plans.INPUTS, [*parity.OF_TOKENS]):
            found.append(source)
    return found


def run(records: Records, source: Path, name: str, plan: Path, in_flight: Sequence[int]) -> None:
    """Serves `plan` in the repository of a workload, and asks at every load that has no figures yet.

    Token ids go to the engine alone, texts through all steps where the plan holds every length that they may have.
    """
    settings, bounds = _settings(source), _bounds(plan)
    asked = ["engine"]
    if all(_held(profile["length"][2], bounds) for profile in settings["profiles"]):
        asked.append("texts")
    left = [(what, load) for what in asked for load in in_flight if not records.done(_item(name, what, load))]
    left = [pair for pair in left if records.suffices(_item(name, *pair), _SERVER_NEEDS_S)]
    if not left:
        return
    folder, engine = repository(source, plan, records.work / "served")
    longest = max(most for _, _, most in bounds)
    tokens = token_requests(settings["inputs"], longest, records.work / "tokens.json")
    targets = {"engine": (engine, tokens), "texts": (source.name, source / "requests.json")}
    with TritonServer(
        folder,
        models=None if "texts" in asked else [engine],
        log_path=records.work / "triton.log",
        startup_timeout_s=min(_STARTUP_S, records.left_s),
        settings=Settings(drain_s=1),
    ) as server:
        records.write(f"{name}: server", "done", repository=source.name)
        for what, load in left:
            measure = partial(closed_loop.load, server.grpc_url, *targets[what], in_flight=load, seconds=SECONDS)
            records.item(_item(name, what, load), measure, needs_s=_NEEDS_S)


def repository(source: Path, plan: Path, folder: Path) -> tuple[Path, str]:
    """Returns a copy of a workload's repository that serves `plan`, and the name of its engine's model."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source / "repository", folder, ignore=shutil.ignore_patterns("*.onnx", "build_plan*"))
    (settings,) = folder.glob("*/1/plan.json")
    shutil.copyfile(plan, settings.with_name("model.plan"))
    shutil.copyfile(plan.with_name(f"{plan.name}.json"), settings.with_name("model.plan.json"))
    engine = settings.parent.parent
    config = engine / "config.pbtxt"
    narrowed = _narrowed(text_format.Parse(config.read_text(encoding="utf-8"), pb.ModelConfig()), _bounds(plan))
    config.write_text(text_format.MessageToString(narrowed), encoding="utf-8")
    return folder, engine.name


def _narrowed(config: pb.ModelConfig, bounds: Sequence[Sequence[int]]) -> pb.ModelConfig:
    """Returns an engine's config with the profiles, CUDA graphs and warm-ups that a plan of `bounds` holds."""
    for group in config.instance_group:
        group.profile[:] = [str(number) for number in range(len(bounds))]
    graphs, warm_ups = config.optimization.cuda.graph_spec, config.model_warmup
    for number in reversed(range(len(graphs))):
        if not _held(next(iter(graphs[number].input.values())).dim[-1], bounds):
            del graphs[number]
    for number in reversed(range(len(warm_ups))):
        if not _held(next(iter(warm_ups[number].inputs.values())).dims[-1], bounds):
            del warm_ups[number]
    return config


def _settings(source: Path) -> dict[str, Any]:
    (path,) = (source / "repository").glob("*/1/plan.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _bounds(plan: Path) -> list[list[int]]:
    """Returns the least, best and most tokens of each of a plan's profiles."""
    stamp = json.loads(plan.with_name(f"{plan.name}.json").read_text(encoding="utf-8"))
    return [profile["length"] for profile in stamp["profiles"]]


def _held(length: int, bounds: Sequence[Sequence[int]]) -> bool:
    return any(low <= length <= most for low, _, most in bounds)


def _item(name: str, what: str, in_flight: int) -> str:
    return f"{name}: {what}, {in_flight} in flight"


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
