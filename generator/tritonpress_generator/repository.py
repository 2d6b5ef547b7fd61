"""Writes a workload into a Triton model repository, so that the repository is whole at every moment.

    NAME/config.pbtxt                   the ensemble: the single switch between builds
    NAME/manifest.BUILD.json            what that build was made from, and how good it is
    NAME/manifest.json                  the same for the build that is switched on, for people
    NAME/kept/                          what the next build need not compute again, such as calibrated ranges
    NAME/1/README                       keeps the version folder, which git and object stores would drop
    NAME_model_HASH/                    the steps; a step's name carries the hash of its content
    NAME_tokenizer_HASH/                (`model` is all three in one, or asks the engine by itself)
    NAME_engine_HASH/
    NAME_postprocessing_HASH/

Everything is written under names that nothing refers to yet; renaming the ensemble's new config over the old one is the
last step that matters, and it either has happened or has not. A build that is killed earlier leaves steps that no
ensemble names; the next build removes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator.errors import InputError
from tritonpress_generator.kept import Kept

_KEEP = "Triton wants a version folder; an ensemble has nothing to put there.\n"
_HASH_LENGTH = 12


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
) -> Path:
    """Returns the ensemble's folder after writing the steps and switching the ensemble to them.

    Args:
        repository: The model repository; made if missing.
        name: The workload's.
        steps: In the order of the flow.
        ensemble: Gives the ensemble's config for the steps' names, by role.
        manifest: What is known of the build; the steps' names, files and hashes are added.
        kept: What the next build of the workload need not compute again; saved beside the manifest.

    Raises:
        InputError: `repository` is not a folder, or cannot be written.
    """
    target = repository / name
    try:
        target.mkdir(parents=True, exist_ok=True)
        _remove_litter(target)
        # Inside the repository, so that renaming stays within one file system, and inside the ensemble's folder, since
        # Triton takes every folder beside it for a model, hidden ones too.
        with tempfile.TemporaryDirectory(prefix=f".build-{os.getpid()}-", dir=target) as work:
            folder = _write(repository, Path(work), name, steps, ensemble, manifest)
        if kept is not None:
            kept.save()
        return folder
    except OSError as exc:
        raise InputError(f"repository {repository}: cannot be written ({exc}); what was there is unchanged") from exc


def check_writable(repository: Path) -> None:
    """Says before the work of a build what would be said after it.

    Raises:
        InputError: `repository` is not a folder, or could not be made or written.
    """
    nearest = next(path for path in (repository, *repository.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"repository {repository}: must be a folder that can be written, {nearest} is none; give another --out"
        )


def _write(
    repository: Path,
    work: Path,
    name: str,
    steps: list[Step],
    ensemble: Callable[[dict[str, str]], pb.ModelConfig],
    manifest: dict[str, Any],
) -> Path:
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
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode() + config_text(step.config).encode())
        names[step.role] = f"{name}_{step.role}_{digest.hexdigest()[:_HASH_LENGTH]}"
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
    build = hashlib.sha256("".join(names.values()).encode()).hexdigest()[:_HASH_LENGTH]
    config = ensemble(names)
    config.name = name
    config.parameters["build"].string_value = build
    target = repository / name
    (target / "1").mkdir(exist_ok=True)
    (target / "1" / "README").write_text(_KEEP, encoding="utf-8")
    text = json.dumps(manifest | {"build": build, "steps": names, "files": files}, indent=2, ensure_ascii=False) + "\n"
    _replace(target / f"manifest.{build}.json", text, work)
    _replace(target / "config.pbtxt", config_text(config), work)
    _replace(target / "manifest.json", text, work)
    _collect(repository, name, build)
    return target


def config_text(config: pb.ModelConfig) -> str:
    """Returns `config` as the text of a `config.pbtxt`.

    A zero is left out of protobuf's text, and Triton takes a missing `max_batch_size` for something else than 0.
    """
    text = text_format.MessageToString(config)
    return text if config.max_batch_size else f"max_batch_size: 0\n{text}"


def read_config(folder: Path) -> pb.ModelConfig:
    """Returns the config of the model in `folder`.

    Raises:
        InputError: There is none, or it does not parse.
    """
    path = folder / "config.pbtxt"
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as exc:
        raise InputError(f"{path}: cannot be read ({' '.join(str(exc).split())}); build the workload again") from exc


def workloads(repository: Path) -> list[str]:
    """Returns the names of the workloads in `repository`, sorted.

    Raises:
        InputError: It is no folder, or holds no workload.
    """
    names = sorted(path.parent.name for path in repository.glob("*/manifest.json"))
    if not names:
        raise InputError(
            f"repository {repository}: must hold a workload with a manifest, has none; run tritonpress build"
        )
    return names


def read_manifest(repository: Path, name: str) -> dict[str, Any]:
    """Returns the manifest of the build of `name` that is switched on.

    Raises:
        InputError: The workload or its manifest is missing or unreadable.
    """
    build = read_config(repository / name).parameters["build"].string_value
    path = repository / name / f"manifest.{build}.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = {"steps", "files", "golden"} - set(manifest)
    except (OSError, ValueError, TypeError) as exc:
        raise InputError(f"{path}: cannot be read ({exc}); build the workload again") from exc
    if missing:
        raise InputError(f"{path}: must have {', '.join(sorted(missing))}; build the workload again")
    return manifest


def record(repository: Path, name: str, known: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Adds to the manifest of the build of `name` that is switched on what has become known of it.

    Args:
        repository: The model repository.
        name: The workload's.
        known: Entries of the manifest.
        files: Of its steps, which have been added since.

    Raises:
        InputError: The manifest cannot be read or written.
    """
    manifest = read_manifest(repository, name)
    added = {str(path.relative_to(repository)): _entry(path) for path in files}
    changed = {**manifest, **known, "files": {**manifest["files"], **added}}
    text = json.dumps(changed, indent=2, ensure_ascii=False) + "\n"
    target = repository / name
    try:
        with tempfile.TemporaryDirectory(prefix=f".build-{os.getpid()}-", dir=target) as work:
            _replace(target / f"manifest.{manifest['build']}.json", text, Path(work))
            _replace(target / "manifest.json", text, Path(work))
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


def _collect(repository: Path, name: str, build: str) -> None:
    """Removes the steps of `name` that no ensemble names any more, and its older manifests."""
    try:
        configs = {path.parent.name: read_config(path.parent) for path in repository.glob("*/config.pbtxt")}
    except InputError:
        return  # somebody else's model, which Triton will refuse: what it names is not known, so nothing is removed
    used = {step.model_name for config in configs.values() for step in config.ensemble_scheduling.step}
    # What a step in use calls by itself is named in its parameters.
    used |= {p.string_value for step in used if step in configs for p in configs[step].parameters.values()}
    own = re.compile(rf"{re.escape(name)}_(model|tokenizer|engine|postprocessing)_[0-9a-f]{{{_HASH_LENGTH}}}")
    for folder in repository.iterdir():
        is_step = own.fullmatch(folder.name)
        if folder.is_dir() and is_step and folder.name not in used:
            shutil.rmtree(folder)
    for path in (repository / name).glob("manifest.*.json"):
        if path.name != f"manifest.{build}.json":
            path.unlink()


def _remove_litter(target: Path) -> None:
    """Removes what builds that were killed have left; a build that still runs keeps its own."""
    for folder in target.glob(".build-*-*"):
        owner = folder.name.split("-")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    return {str(path.relative_to(folder)): _entry(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _sync(folder: Path) -> None:
    """Forces the files to the disk, so that a crash cannot leave a name in place of its content."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _replace(target: Path, text: str, work: Path) -> None:
    """Puts `text` at `target` in one step."""
    new = work / target.name
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(target)
