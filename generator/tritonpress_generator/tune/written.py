"""A build that lies in a repository, once more with other configs: beside it, and switched on by `promote`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_server import strict_yaml

from tritonpress_generator import builds, repository, workplace
from tritonpress_generator.errors import InputError
from tritonpress_generator.repository import Step
from tritonpress_generator.tune import knobs as turning
from tritonpress_generator.tune.knobs import Configs, Knob
from tritonpress_generator.tune.session import Found

_OF_BUILD = {"build", "steps", "ensemble", "files", "builds", "created"}
"""What another build has of its own."""
_OF_SERVE = {"delay": "max_queue_delay_microseconds", "batch": "max_batch_size", "preferred": "preferred_batch_size"}
"""What recipes call the knobs of the dynamic batcher."""


def place(path: Path, found: Found, tuned: Mapping[str, Any]) -> dict[str, str]:
    """Returns the names of the builds, by workload, with the configs that were found, beside those that serve.

    Args:
        path: The model repository.
        found: What a tuning has found.
        tuned: What their manifests say of it.

    Raises:
        InputError: Another build serves by now than was tuned, or the repository cannot be written.
    """
    for name, manifest in found.manifests.items():
        if (now := builds.served(path, name)) != manifest["build"]:
            raise InputError(
                f"{name}: must serve build {manifest['build']}, which was tuned, until the end, serves {now}; no build "
                f"was placed; promote {manifest['build']} and give the same command, which measures nothing anew, or "
                f"tune {now}"
            )
    return {
        name: write(path, name, found.manifests[name], found.configs, {**tuned, "recipe": changed})
        for name, changed in entries(found).items()
    }


def entries(found: Found) -> dict[str, dict[str, Any]]:
    """Returns what recipes must have in place of their own entries for `build` to write the configs that were found.

    By workload, of those of which a config has changed.

    Raises:
        InputError: A manifest's recipe cannot be read.
    """
    return {
        name: recipe_entries(manifest, [knob for knob in found.knobs if knob.workload == name], found.configs)
        for name, manifest in found.manifests.items()
        if found.changed & {*manifest["steps"].values(), name}
    }


def write(path: Path, name: str, manifest: Mapping[str, Any], configs: Configs, tuned: Mapping[str, Any]) -> str:
    """Returns the name of a build of the workload `name` that is the one of `manifest`, with other configs.

    Nothing of what serves is touched.

    Args:
        path: The model repository.
        name: The workload's.
        manifest: Of the build that was tuned.
        configs: Of its ensemble and its steps, by their names now.
        tuned: What the manifest says of how they were found.

    Raises:
        InputError: The repository cannot be written.
    """
    before: dict[str, str] = manifest["steps"]
    steps = [_step(path, role, configs[model], before, manifest) for role, model in before.items()]
    known = {key: value for key, value in manifest.items() if key not in _OF_BUILD}
    known |= {"created": datetime.now(timezone.utc).isoformat(timespec="seconds"), "tuned": dict(tuned)}

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
            build = repository.place(path, work, name, steps, ensemble, known)
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
            shutil.copy(path / file, target)  # with its mode: `build_plan.sh` is run

    own = pb.ModelConfig()
    own.CopyFrom(config)
    own.ClearField("name")
    calls = [r for r, name in before.items() if r in own.parameters and own.parameters[r].string_value == name]
    data = {f.removeprefix(warm_up): (path / f).read_bytes() for f in manifest["files"] if f.startswith(warm_up)}
    return Step(role, own, fill, data, calls)


def recipe_entries(manifest: Mapping[str, Any], knobs: Sequence[Knob], configs: Configs) -> dict[str, Any]:
    """Returns what a workload's recipe must have in place of its own entries for `build` to write the same configs.

    Args:
        manifest: Of the build that was tuned, whose recipe's other settings stay.
        knobs: The workload's.
        configs: Of its ensemble and its steps, turned.

    Raises:
        InputError: The manifest's recipe cannot be read.
    """
    recipe = _recipe(manifest)
    engine: dict[str, Any] = {}
    serve: dict[str, Any] = {}
    for knob in knobs:
        config = configs[knob.models[0]]
        value = turning.KINDS[knob.kind].read(config)
        if knob.kind == "preferred":
            serve[_OF_SERVE[knob.kind]] = list(value)
        elif knob.kind in _OF_SERVE:
            serve[_OF_SERVE[knob.kind]] = value[0]
        elif knob.kind == "cache":
            serve["response_cache"] = bool(value[0])
        elif knob.role == "tokenizer":
            serve["tokenizer_instances"] = value[0]
        else:
            engine |= turning.sizing(config)
    own = recipe["engine"]
    word, settings = (own, {}) if isinstance(own, str) else next(iter(own.items()))
    changed: dict[str, Any] = {"engine": {word: {**(settings or {}), **engine}}} if engine else {}
    return changed | ({"serve": {**recipe.get("serve", {}), **serve}} if serve else {})


def recipe_lines(entries: Mapping[str, Any]) -> list[str]:
    """Returns a recipe's entries as YAML, a line each."""
    return [
        f"{key}: {yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=math.inf).strip()}"
        for key, entry in entries.items()
    ]


def _recipe(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the recipe that would build what is served: as it is written, with what a tuning before has changed."""
    try:
        return {**strict_yaml.load(manifest["recipe"]), **manifest.get("tuned", {}).get("recipe", {})}
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        name, why = manifest["workload"], " ".join(str(exc).split())
        raise InputError(f"{name}: the recipe in its manifest cannot be read ({why}); build it again") from exc
