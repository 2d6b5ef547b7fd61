"""A build that lies in a repository, once more with other configs: beside it, and switched on by `promote`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import builds, repository, workplace
from tritonpress_generator.errors import InputError
from tritonpress_generator.repository import Step
from tritonpress_generator.tune.knobs import Configs, Knob, Setting, Value

_OF_BUILD = {"build", "steps", "ensemble", "files", "builds", "created"}
"""What another build has of its own."""
_THREADS = {"openvino": "inference_num_threads"}


def write(path: Path, name: str, configs: Configs, tuned: Mapping[str, Any]) -> str:
    """Returns the name of a build of the workload `name` that is the one that serves, with other configs.

    Nothing of what serves is touched.

    Args:
        path: The model repository.
        name: The workload's.
        configs: Of its ensemble and its steps, by their names now.
        tuned: What the manifest says of how they were found.

    Raises:
        InputError: The manifest cannot be read, or the repository cannot be written.
    """
    manifest = builds.read_manifest(path, name)
    before: dict[str, str] = manifest["steps"]
    steps = [_step(path, role, configs[model], before, manifest) for role, model in before.items()]
    entries = {key: value for key, value in manifest.items() if key not in _OF_BUILD}
    entries |= {"created": datetime.now(timezone.utc).isoformat(timespec="seconds"), "tuned": dict(tuned)}

    def ensemble(names: dict[str, str]) -> pb.ModelConfig:
        config = text_format.Parse(manifest["ensemble"], pb.ModelConfig())
        for field in ("max_batch_size", "response_cache"):
            config.ClearField(field)
        config.max_batch_size = configs[name].max_batch_size
        if configs[name].HasField("response_cache"):
            config.response_cache.CopyFrom(configs[name].response_cache)
        roles = {model: role for role, model in before.items()}
        for step in config.ensemble_scheduling.step:
            step.model_name = names[roles[step.model_name]]
        return config

    try:
        with workplace.at_work(path, name, wait=True) as work:
            build = repository.place(path, work, name, steps, ensemble, entries)
            builds.write_for_people(path, name, work)
    except OSError as exc:
        raise InputError(f"repository {path}: cannot be written ({exc}); what was there is unchanged") from exc
    return build


def _step(
    path: Path, role: str, config: pb.ModelConfig, before: Mapping[str, str], manifest: Mapping[str, Any]
) -> Step:
    """Returns a step with the files of the one that lies there."""
    model = before[role]
    version, warm_up = f"{model}/1/", f"{model}/warmup/"
    files = [file for file in manifest["files"] if file.startswith(version)]

    def fill(folder: Path) -> None:
        for file in files:
            target = folder / file.removeprefix(version)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / file, target)

    own = pb.ModelConfig()
    own.CopyFrom(config)
    own.ClearField("name")
    calls = [r for r, name in before.items() if r in own.parameters and own.parameters[r].string_value == name]
    data = {f.removeprefix(warm_up): (path / f).read_bytes() for f in manifest["files"] if f.startswith(warm_up)}
    return Step(role, own, fill, data, calls)


def recipe_lines(knobs: Sequence[Knob], setting: Setting, engine: str) -> list[str]:
    """Returns what a workload's recipe must say for `build` to write the same configs."""
    serve: dict[str, str] = {}
    sizing: dict[str, str] = {}
    names = {"delay": "max_queue_delay_microseconds", "batch": "max_batch_size"}
    for knob in knobs:
        value = setting[knob.key]
        if knob.kind in names:
            serve[names[knob.kind]] = str(value[0])
        elif knob.kind == "preferred":
            serve["preferred_batch_size"] = str(list(value))
        elif knob.kind == "cache":
            serve["response_cache"] = "true" if value[0] else "false"
        elif knob.role == "tokenizer":
            serve["tokenizer_instances"] = str(value[0])
        else:
            sizing |= _sizing(engine, value)
    lines = [f"engine: {{{engine}: {{{_items(sizing)}}}}}"] if sizing else []
    return lines + ([f"serve: {{{_items(serve)}}}"] if serve else [])


def _sizing(engine: str, value: Value) -> dict[str, str]:
    names = ("instances", _THREADS.get(engine, "intra_op_thread_count"))
    return {name: str(number) for name, number in zip(names, value, strict=False)}


def _items(mapping: Mapping[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in mapping.items())
