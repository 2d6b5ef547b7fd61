"""Writes a workload into a Triton model repository, so that the repository is whole at every moment.

    NAME/config.pbtxt                   the ensemble: the single switch between builds (`builds.py`)
    NAME/manifest.BUILD.json            what that build was made from, and how good it is
    NAME/manifest.json                  the same for the build that is switched on, for people
    NAME_canary/                        the ensemble of a build that is tried beside the one that is switched on
    NAME/kept/                          what the next build need not compute again, such as calibrated ranges
    NAME/1/README                       keeps the version folder, which git and object stores would drop
    NAME_model_HASH/                    the steps; a step's name carries the hash of its content
    NAME_tokenizer_HASH/                (`model` is all three in one, or asks the engine by itself)
    NAME_engine_HASH/
    NAME_postprocessing_HASH/

Everything is written under names that nothing refers to yet; renaming the ensemble's new config over the old one is the
last step that matters, and it either has happened or has not. A build that is killed earlier leaves steps that no
manifest names; the next build removes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import builds, workplace
from tritonpress_generator.builds import config_text, read_config, read_manifest, workloads
from tritonpress_generator.errors import InputError
from tritonpress_generator.kept import Kept
from tritonpress_generator.used import HASH_LENGTH

__all__ = [
    "KEEP",
    "Step",
    "changed_files",
    "check_writable",
    "config_text",
    "place",
    "read_config",
    "read_manifest",
    "record",
    "size_bytes",
    "workloads",
    "write",
]

_BYTE_CODE = "__pycache__"
KEEP = 1
"""Builds that stay beside those that an ensemble names: the one before, so that there is a way back."""


@dataclass(frozen=True)
class Step:
    """One step of an ensemble: its role, its config without a name, and what writes its version folder."""

    role: str
    config: pb.ModelConfig
    write: Callable[[Path], None]
    """Fills the version folder that it is given."""
    warm_up: Mapping[str, bytes] = field(default_factory=dict)
    """Raw tensors that the config's `model_warmup` names as `input_data_file`."""
    calls: Sequence[str] = ()
    """Roles of earlier steps that it asks by itself; it finds their names in its config's parameters, by role."""


def write(
    repository: Path,
    name: str,
    steps: list[Step],
    ensemble: Callable[[dict[str, str]], pb.ModelConfig],
    manifest: dict[str, Any],
    kept: Kept | None = None,
    *,
    canary: bool = False,
    keep: int = KEEP,
) -> Path:
    """Returns the ensemble's folder after writing the steps and switching the ensemble to them.

    Args:
        repository: The model repository; made if missing.
        name: The workload's.
        steps: In the order of the flow.
        ensemble: Gives the ensemble's config for the steps' names, by role.
        manifest: What is known of the build; the steps' names, files and hashes are added.
        kept: What the next build of the workload need not compute again; saved beside the manifest.
        canary: Whether the build is placed beside the one that serves, under the canary's name.
        keep: How many builds that no ensemble names stay. The one that the ensemble served until now stays in any case:
            servers have yet to follow.

    Raises:
        InputError: `repository` is not a folder, or cannot be written.
    """
    is_new = not (repository / name).exists()
    try:
        (repository / name).mkdir(parents=True, exist_ok=True)
        with workplace.at_work(repository, name, wait=True) as work:
            build = place(repository, work, name, steps, ensemble, manifest)
            if kept is not None:
                # What servers of the other builds are gated against stays with them.
                for content in builds.manifests(repository, name).values():
                    if "baseline" in content:
                        kept.get(content["baseline"])
                kept.save()
            until_now = builds.canary(repository, name) if canary else _served(repository, name)
            before = [] if canary or until_now is None else builds.history(repository, name, build)
            folder = builds.switch(repository, name, build, work, before=before, canary=canary)
            builds.collect(repository, name, keep, work, spare=until_now)
        return folder
    except OSError as exc:
        if is_new:
            with contextlib.suppress(OSError):
                (repository / name).rmdir()
        raise InputError(f"repository {repository}: cannot be written ({exc}); what was there is unchanged") from exc


def _served(repository: Path, name: str) -> str | None:
    """Returns the build that serves; None where the first is being written."""
    return builds.served(repository, name) if (repository / name / "config.pbtxt").exists() else None


def check_writable(repository: Path) -> None:
    """Says before the work of a build what would be said after it.

    Raises:
        InputError: `repository` is not a folder, or could not be made or written.
    """
    workplace.check_writable(repository, what=f"repository {repository}", remedy="give another --out")


def check_canary(repository: Path, name: str) -> None:
    """Says before the work of a canary's build that there is nothing to try it beside.

    Raises:
        InputError: `name` is not served from there, or a model that is no canary has the canary's name.
    """
    if not (repository / name / "config.pbtxt").exists():
        raise InputError(
            f"repository {repository}: must serve {name} for a canary beside it; build it without --canary"
        )
    builds.canary(repository, name)


def place(
    repository: Path,
    work: Path,
    name: str,
    steps: list[Step],
    ensemble: Callable[[dict[str, str]], pb.ModelConfig],
    manifest: dict[str, Any],
) -> str:
    """Returns the name of a build after writing its steps and its manifest, which change nothing of what serves.

    Args:
        repository: The model repository.
        work: A folder within it (`workplace.at_work`).
        name: The workload's.
        steps: In the order of the flow.
        ensemble: Gives the ensemble's config for the steps' names, by role.
        manifest: What is known of the build; the steps' names, files and hashes are added.

    Raises:
        OSError: The repository cannot be written.
    """
    names: dict[str, str] = {}
    files: dict[str, dict[str, Any]] = {}
    for step in steps:
        folder = work / step.role
        step.write(folder / "1")
        for file, data in step.warm_up.items():
            (folder / "warmup").mkdir(exist_ok=True)
            (folder / "warmup" / file).write_bytes(data)
        for role in step.calls:
            step.config.parameters[role].string_value = names[role]
        content = _files(folder)
        for code in {path.parent for path in folder.rglob("*.py")}:
            # Where a folder of byte code would be: Triton's stub writes some whatever it is told, by which a step is
            # newer than it was, and is loaded again with its ensemble. It is no part of the build, which works without.
            (code / _BYTE_CODE).touch()
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode() + config_text(step.config).encode())
        names[step.role] = f"{name}_{step.role}_{digest.hexdigest()[:HASH_LENGTH]}"
        config = pb.ModelConfig()
        config.CopyFrom(step.config)
        config.name = names[step.role]
        (folder / "config.pbtxt").write_text(config_text(config), encoding="utf-8")
        own = {f"{names[step.role]}/{file}": entry for file, entry in _files(folder).items()}
        files |= own
        target = repository / names[step.role]
        if changed_files(repository, {"files": own}):
            _sync(folder)
            if target.exists():  # somebody has changed it: its name promises another content
                target.rename(work / f"{step.role}.changed")
            folder.rename(target)
    config = ensemble(names)
    config.name = name
    text = config_text(config)
    build = hashlib.sha256("".join([*names.values(), text]).encode()).hexdigest()[:HASH_LENGTH]
    entries = {"build": build, "steps": names, "ensemble": text, "files": files}
    builds.write_manifest(repository, name, manifest | entries, work)
    return build


def record(repository: Path, name: str, build: str, known: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Adds to the manifest of a build of `name` what has become known of it.

    Args:
        repository: The model repository.
        name: The workload's.
        build: Which one.
        known: Entries of the manifest.
        files: Of its steps, which have been added since.

    Raises:
        InputError: The manifest cannot be read or written.
    """
    manifest = read_manifest(repository, name, build)
    added = {str(path.relative_to(repository)): _entry(path) for path in files}
    changed = {**manifest, **known, "files": {**manifest["files"], **added}}
    try:
        with workplace.at_work(repository, name, wait=True) as work:
            builds.write_manifest(repository, manifest.get("workload", name), changed, work)
            builds.write_for_people(repository, name, work)
    except OSError as exc:
        raise InputError(f"repository {repository}: cannot be written ({exc}); the manifest is as it was") from exc


def changed_files(repository: Path, manifest: dict[str, Any]) -> list[str]:
    """Returns what has happened to each of the manifest's files that is not as it was written."""
    problems = []
    for file, entry in manifest["files"].items():
        path = repository / file
        if not path.is_file():
            problems.append(f"{file} is missing")
        elif _entry(path)["sha256"] != entry["sha256"]:
            problems.append(f"{file} has changed")
    return problems


def size_bytes(manifest: dict[str, Any]) -> int:
    """Returns the size of all files of a build."""
    return sum(int(entry["bytes"]) for entry in manifest["files"].values())


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _BYTE_CODE]
    return {str(path.relative_to(folder)): _entry(path) for path in paths}


def _entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _sync(folder: Path) -> None:
    """Forces the files to the disk, so that a crash cannot leave a name in place of its content."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
