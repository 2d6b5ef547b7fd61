"""The builds of a workload that lie in a repository, and the switch between them.

    NAME/config.pbtxt            names the steps of the build that serves; its parameters say which build that is
                                 (`build`) and which served before it, newest first (`previous`)
    NAME/manifest.BUILD.json     of each build that lies there, with the ensemble's config that serves it (`ensemble`)
    NAME/manifest.json           for people: of the build that serves, with a list of all of them (`builds`)
    NAME_canary/                 the ensemble of a build that is tried beside; `canary_of` in its parameters says NAME

The switch is one rename of a `config.pbtxt`, which has the history in it: both have happened or neither has.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import manifest
from tritonpress_generator.errors import InputError
from tritonpress_generator.manifest import ManifestError
from tritonpress_generator.used import own_steps, used
from tritonpress_generator.workplace import replace

_CANARY = "_canary"
_ROW_BYTES = 1024
"""More than a build has in the list of them for people."""
_KEEP = "Triton wants a version folder; an ensemble has nothing to put there.\n"


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
        if path.exists() and not path.is_file():  # a pipe or a device would be waited for
            raise OSError("is no file")
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, RecursionError, text_format.ParseError) as exc:
        raise InputError(f"{path}: cannot be read ({' '.join(str(exc).split())}); build the workload again") from exc


def workloads(repository: Path) -> list[str]:
    """Returns the names of the workloads in `repository`, canaries too, sorted.

    Raises:
        InputError: It is no folder, or holds no workload.
    """
    names = sorted(path.parent.name for path in repository.glob("*/manifest.json"))
    if not names:
        raise InputError(
            f"repository {repository}: must hold a workload with a manifest, has none; run tritonpress build"
        )
    return names


def served(repository: Path, name: str) -> str:
    """Returns the build that the ensemble `name` serves.

    Raises:
        InputError: There is no such ensemble, or its config does not parse.
    """
    return str(read_config(repository / name).parameters["build"].string_value)


def previous(repository: Path, name: str) -> list[str]:
    """Returns the builds that `name` served before, newest first; some may have been collected."""
    return str(read_config(repository / name).parameters["previous"].string_value).split()


def history(repository: Path, name: str, build: str) -> list[str]:
    """Returns what `previous` is to be once `build` serves in place of the build that does now."""
    now, found = served(repository, name), manifests(repository, name)
    before = previous(repository, name)
    return before if build == now else [b for b in (now, *before) if b != build and b in found]


def owner(repository: Path, name: str) -> str:
    """Returns the workload whose builds the ensemble `name` serves: its own, or another's whose canary it is."""
    return str(read_config(repository / name).parameters["canary_of"].string_value or name)


def canary_name(name: str) -> str:
    """Returns the name of the ensemble under which a build of `name` is tried."""
    return name + _CANARY


def canary(repository: Path, name: str) -> str | None:
    """Returns the build that is tried beside the one of `name`; None if none is.

    Raises:
        InputError: A model that is no canary has the name.
    """
    folder = repository / canary_name(name)
    if not folder.exists():
        return None
    if owner(repository, folder.name) != name:
        raise InputError(f"{folder}: must be the canary of {name}, is a model of its own; rename one of the workloads")
    return served(repository, folder.name)


def asked(repository: Path | None, name: str, *, of_canary: bool) -> str:
    """Returns the name of the ensemble that serves the workload `name`, or of its canary.

    Raises:
        InputError: `repository` is given, and has no canary of it, or a model that is none has the name.
    """
    if of_canary and repository is not None and canary(repository, name) is None:
        raise InputError(f"{repository}: must have a canary of {name}, has none; build one, or leave out --canary")
    return canary_name(name) if of_canary else name


def manifests(repository: Path, name: str) -> dict[str, dict[str, Any]]:
    """Returns the manifests of the builds of `name` that lie there, by build; one that cannot be read is left out."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((repository / name).glob("manifest.*.json")):
        with contextlib.suppress(ManifestError):
            content = manifest.read(path)
            if path.name == f"manifest.{content['build']}.json":
                found[content["build"]] = content
    return found


def read_manifest(repository: Path, name: str, build: str | None = None) -> dict[str, Any]:
    """Returns the manifest of a build of `name`, which may be a canary's; default: of the build that serves.

    Raises:
        InputError: The workload or the manifest is missing or unreadable.
    """
    build = build or served(repository, name)
    path = repository / owner(repository, name) / f"manifest.{build}.json"
    try:
        return manifest.read(path)
    except ManifestError as exc:
        raise InputError(f"{path}: cannot be read ({exc}); build the workload again") from exc


def listing(repository: Path, name: str) -> list[dict[str, str]]:
    """Returns what is known of each build of `name` that lies there: `build`, `created`, and its `state`.

    The state is `served`, `canary`, `previous` (served before) or `kept`; the newest first, in this order.
    """
    found = manifests(repository, name)
    now, tried, before = served(repository, name), canary(repository, name), previous(repository, name)

    def state(build: str) -> str:
        if build == now:
            return "served"
        if build == tried:
            return "canary"
        return "previous" if build in before else "kept"

    rows = [{"build": b, "created": str(m.get("created", "")), "state": state(b)} for b, m in found.items()]
    rows.sort(key=lambda row: row["created"], reverse=True)
    states = ["served", "canary", "previous", "kept"]
    # Those that served before in the order in which they did.
    return sorted(
        rows,
        key=lambda row: (
            states.index(row["state"]),
            before.index(row["build"]) if row["state"] == "previous" else 0,
        ),
    )


def switch(
    repository: Path, name: str, build: str, work: Path, *, before: Sequence[str] = (), canary: bool = False
) -> Path:
    """Returns the folder of the ensemble that serves `build` from now on.

    Args:
        repository: The model repository.
        name: The workload's.
        build: One whose manifest lies there.
        work: A folder within the repository.
        before: The builds that are recorded as those that served before, newest first.
        canary: Whether it is the canary that is switched, rather than the workload.

    Raises:
        InputError: The build's manifest cannot be read.
        OSError: The repository cannot be written; the ensemble is as it was.
    """
    ensemble = canary_name(name) if canary else name
    try:
        content = manifest.read(repository / name / f"manifest.{build}.json")
        config = text_format.Parse(content["ensemble"], pb.ModelConfig())
    except (ManifestError, KeyError, RecursionError, text_format.ParseError) as exc:
        raise InputError(f"{name}: the manifest of build {build} cannot be read ({exc!r}); build it again") from exc
    config.name = ensemble
    config.parameters["build"].string_value = build
    if before:
        config.parameters["previous"].string_value = " ".join(before)
    if canary:
        config.parameters["canary_of"].string_value = name
    target = repository / ensemble
    folder = target if target.exists() else work / ensemble
    if not (folder / "1" / "README").exists():
        (folder / "1").mkdir(parents=True, exist_ok=True)
        # Not written in place: a link there would lead out of the repository.
        replace(folder / "1" / "README", _KEEP, work)
    rows = 1 + len(manifests(repository, name))
    room = _room(work, (1 + canary) * (len(_json_text(content).encode()) + rows * _ROW_BYTES))
    replace(folder / "config.pbtxt", config_text(config), work)
    if folder != target:
        # A folder that is new appears whole, and as a workload at once.
        replace(folder / "manifest.json", _json_text(content), work)
        folder.rename(target)
    room.unlink()
    write_for_people(repository, ensemble, work)
    if canary:
        write_for_people(repository, name, work)
    return target


def _room(work: Path, size: int) -> Path:
    """Returns a file of so many bytes, which keeps room for what is written after the switch and must not fail then."""
    path = work / "room"
    with path.open("wb") as file:
        file.write(bytes(size))
        file.flush()
        os.fsync(file.fileno())
    return path


def write_manifest(repository: Path, name: str, content: Mapping[str, Any], work: Path) -> None:
    """Writes the manifest of a build of `name`."""
    replace(repository / name / f"manifest.{content['build']}.json", _json_text(content), work)


def write_for_people(repository: Path, name: str, work: Path) -> None:
    """Writes `NAME/manifest.json`."""
    content = read_manifest(repository, name)
    text = _json_text({**content, "builds": listing(repository, owner(repository, name))})
    replace(repository / name / "manifest.json", text, work)


def withdraw(repository: Path, name: str, work: Path) -> None:
    """Removes the canary of `name`, whose build stays as those do that served before."""
    (repository / canary_name(name)).rename(work / canary_name(name))
    write_for_people(repository, name, work)


def in_use(repository: Path) -> set[str]:
    """Returns the steps that ensembles in the repository use, whoever wrote them.

    Raises:
        InputError: A config does not parse, which may be somebody else's: what it names is not known.
    """
    return used({path.parent.name: read_config(path.parent) for path in repository.glob("*/config.pbtxt")})


def beyond(repository: Path, name: str, keep: int) -> list[str]:
    """Returns the builds of `name` that no ensemble names, but for the last `keep` of them."""
    return [row["build"] for row in listing(repository, name) if row["state"] in {"previous", "kept"}][keep:]


def collect(repository: Path, name: str, keep: int, work: Path, *, spare: str | None = None) -> list[str]:
    """Returns the builds of `name` that were removed: those beyond `keep`, but for `spare`.

    A build's manifest goes before its steps, so that what lies there by its manifest is whole; a step goes in one
    rename, so that nobody sees half of it.

    Args:
        repository: The model repository.
        name: The workload's.
        keep: How many builds that no ensemble names stay.
        work: A folder within the repository.
        spare: The build that was switched from, where servers may serve it still: one that polls would take its steps
            away before it has those of the next.
    """
    try:
        named = in_use(repository)
    except InputError:
        return []  # nothing is removed on a guess
    gone = [build for build in beyond(repository, name, keep) if build != spare]
    for build in gone:
        (repository / name / f"manifest.{build}.json").unlink()
    stays = {step for content in manifests(repository, name).values() for step in content["steps"].values()}
    own = own_steps(name)
    idle = {path.name for path in repository.iterdir() if path.is_dir() and own.fullmatch(path.name)} - named
    for step in sorted(idle - stays):
        (repository / step).rename(work / step)
        shutil.rmtree(work / step)
    if gone:
        write_for_people(repository, name, work)
    return gone


def _json_text(content: Mapping[str, Any]) -> str:
    """Returns a manifest as the text of its file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
