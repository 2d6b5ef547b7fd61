"""Switches a workload between the builds that lie in a repository, in its files and on the servers that serve it.

Servers load the new steps first; then one rename switches the files; then they take the ensemble's new config. Each
request is answered by one build as a whole: the ensemble's config names every step by the hash of its content, and a
request that has begun keeps the steps that it began with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonpress_client import Options, TritonpressError

from tritonpress_generator import builds, workplace
from tritonpress_generator.errors import GeneratorError, InputError, VerificationError
from tritonpress_generator.model_control import ModelControl, check_serves, given_back, switch_back
from tritonpress_generator.plans import pending
from tritonpress_generator.repository import KEEP, changed_files

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Servers:
    """Those that are told of a switch."""

    targets: Sequence[str] = ()
    """`HOST:PORT` of each."""
    timeout_s: float = TIMEOUT_S
    """How long one may take to load a model."""
    options: Options | None = None
    """How they are trusted, and what they ask of those who give orders."""


NO_SERVERS = Servers()


@dataclass(frozen=True)
class Switched:
    """What a switch has done."""

    build: str
    """That serves now."""
    before: str
    """That served before; the same where nothing was to be switched in the files."""
    collected: list[str]
    """Builds that were removed."""


def promote(
    repository: Path,
    name: str,
    build: str | None = None,
    *,
    servers: Servers = NO_SERVERS,
    keep: int = KEEP,
) -> Switched:
    """Returns what was done to make `name` serve `build`.

    Again the same after it was killed, or where it serves that build already, brings the servers up to date.

    Args:
        repository: The model repository.
        name: The workload's.
        build: One that lies there; default: the canary's.
        servers: Those that serve the repository; without, the files alone are switched.
        keep: How many builds that no ensemble names stay; without servers the one that was switched from stays too, as
            those that are not told may serve it still.

    Raises:
        InputError: There is no such workload or build, or it is being changed by another process.
        VerificationError: The build is not as it was written, or a server does not serve it: all is as it was. Or a
            server has switched, and does not unload what is not used any more: that the switch holds is said.
        TritonpressError: A server does not answer from the start; the repository is as it was.
    """
    with _changing(repository, name, servers) as (work, controls):
        tried = builds.canary(repository, name)
        if build is None and tried is None:
            raise InputError(f"{name}: has no canary; say which build: {_choices(repository, name)}")
        return _switch(repository, name, build or str(tried), work, controls, keep)


def rollback(
    repository: Path,
    name: str,
    *,
    servers: Servers = NO_SERVERS,
    keep: int = KEEP,
) -> Switched:
    """Returns what was done to make `name` serve the build that it served before; twice goes back by two.

    Raises:
        InputError: There is none before, or it does not lie there any more, or a server serves something else than the
            repository says, as after a switch that was killed; else as `promote`.
        VerificationError: As `promote`.
        TritonpressError: As `promote`.
    """
    with _changing(repository, name, servers) as (work, controls):
        now, found = builds.served(repository, name), builds.manifests(repository, name)
        before = builds.previous(repository, name)
        if not before or before[0] not in found:
            raise InputError(
                f"{name}: no build lies there that served before {now}; promote one of: {_choices(repository, name)}"
            )
        for control in controls:
            check_serves(control.target, repository, name, now, control.build(name))
        return _switch(repository, name, before[0], work, controls, keep, history=before[1:])


def withdraw(
    repository: Path,
    name: str,
    *,
    servers: Servers = NO_SERVERS,
    keep: int = KEEP,
) -> str:
    """Returns the build that was `name`'s canary and is it no longer.

    Raises:
        InputError: There is no canary; else as `promote`.
        VerificationError: A server has not given up what is not used any more: that it is no canary is said.
        TritonpressError: As `promote`.
    """
    with _changing(repository, name, servers) as (work, controls):
        build = builds.canary(repository, name)
        if build is None:
            raise InputError(f"{name}: has no canary; builds that lie there: {_choices(repository, name)}")
        builds.withdraw(repository, name, work)
        _retire(repository, name, controls, keep, work)
        return build


def bring_up(
    repository: Path,
    name: str,
    *,
    canary: bool,
    servers: Servers,
    keep: int = KEEP,
) -> None:
    """Makes servers take what a build has written.

    Args:
        repository: The model repository.
        name: The workload's.
        canary: Whether the build is its canary.
        servers: Those that serve the repository.
        keep: How many builds that no ensemble names stay.

    Raises:
        VerificationError: A server does not serve the build, or cannot load a model of it, or has switched and does not
            unload what is not used any more: which of these is said.
        TritonpressError: A server does not answer.
    """
    with _at_work(repository, name) as work, _connected(servers) as controls:
        ensemble = builds.canary_name(name) if canary else name
        manifest = builds.read_manifest(repository, ensemble)
        with given_back(controls):
            for control in controls:
                with _named(f"the repository has the build, and {control.target} serves what it did"):
                    control.load_steps([*manifest["steps"].values()])
                    control.load_ensemble(ensemble, manifest["build"])
        _retire(repository, name, controls, keep, work)


def _switch(
    repository: Path,
    name: str,
    build: str,
    work: Path,
    controls: Sequence[ModelControl],
    keep: int,
    *,
    history: Sequence[str] | None = None,
) -> Switched:
    """Returns what was done; a server that refuses the build leaves all as it was."""
    manifest = _checked(repository, name, build)
    now, then = builds.served(repository, name), builds.previous(repository, name)
    with given_back(controls):
        for control in controls:
            with _named("nothing was switched"):
                control.load_steps([*manifest["steps"].values()])
        before = builds.history(repository, name, build) if history is None else history
        builds.switch(repository, name, build, work, before=before)
        try:
            for control in controls:
                with _named(f"{name} was switched back to {now}" if now != build else "nothing was switched"):
                    control.load_ensemble(name, build)
        except VerificationError:
            if now != build:
                builds.switch(repository, name, now, work, before=then)
                switch_back(controls, name, now)
            raise
    return Switched(build, now, _retire(repository, name, controls, keep, work, spare=None if controls else now))


def _retire(
    repository: Path, name: str, controls: Sequence[ModelControl], keep: int, work: Path, *, spare: str | None = None
) -> list[str]:
    """Returns the builds that were removed, after the servers have unloaded the steps that nothing uses.

    Raises:
        VerificationError: A server has not; the others have, the switch holds, and no build was removed.
    """
    served = builds.served(repository, name)
    failures: list[VerificationError] = []
    for control in controls:
        try:
            with _named(
                f"{name} serves build {served}, as the repository says, and no build was removed; unload what is not "
                f"used once that is mended: tritonpress promote {repository} {name} {served} --server {control.target}"
            ):
                if builds.canary(repository, name) is None:
                    control.unload_canary(builds.canary_name(name), name)
                control.unload_unused(name, builds.in_use(repository))
        except VerificationError as exc:
            failures.append(exc)
    if failures:
        raise failures[0]
    return builds.collect(repository, name, keep, work, spare=spare)


def _checked(repository: Path, name: str, build: str) -> dict[str, Any]:
    """Returns the manifest of a build that can be served."""
    if build not in builds.manifests(repository, name):
        raise InputError(f"{name}: has no build {build!r}; choose from: {_choices(repository, name)}")
    manifest = builds.read_manifest(repository, name, build)
    if problems := changed_files(repository, manifest):
        raise VerificationError(f"{name}: build {build}: {'; '.join(problems)}; nothing was switched; build it again")
    if missing := pending.missing(repository, manifest):
        raise InputError(
            f"{name}: build {build}: its plan is pending; run {missing[0]} on a machine with the GPU first"
        )
    return manifest


def _check_workload(repository: Path, name: str) -> None:
    if not (repository / name / "manifest.json").is_file() or builds.owner(repository, name) != name:
        known = [known for known in builds.workloads(repository) if builds.owner(repository, known) == known]
        raise InputError(f"repository {repository}: has no workload {name!r}; choose from: {', '.join(known)}")


def _choices(repository: Path, name: str) -> str:
    """Returns the builds that lie there, for a message."""
    rows = builds.listing(repository, name)
    return ", ".join(f"{row['build']} ({row['state']}, {row['created']})" for row in rows)


@contextmanager
def _changing(repository: Path, name: str, servers: Servers) -> Iterator[tuple[Path, list[ModelControl]]]:
    """Yields a folder to write in and the servers, while nobody else changes the workload."""
    _check_workload(repository, name)
    builds.canary(repository, name)  # refuses another model of that name, before anything is changed
    with _at_work(repository, name) as work, _connected(servers) as controls:
        yield work, controls


@contextmanager
def _at_work(repository: Path, name: str) -> Iterator[Path]:
    """Yields a folder to write in; says in one line what the disk refuses."""
    try:
        with workplace.at_work(repository, name, wait=False) as work:
            yield work
    except OSError as exc:
        raise InputError(
            f"repository {repository}: cannot be written ({exc}); see what serves with the manifest"
        ) from exc


@contextmanager
def _connected(servers: Servers) -> Iterator[list[ModelControl]]:
    """Yields the servers, all of which answer."""
    controls: list[ModelControl] = []
    try:
        for target in servers.targets:
            controls.append(ModelControl(target, timeout_s=servers.timeout_s, options=servers.options))
        yield controls
    finally:
        for control in controls:
            control.close()


@contextmanager
def _named(consequence: str) -> Iterator[None]:
    """Says of what a server refuses what has become of the switch."""
    try:
        yield
    except (TritonpressError, GeneratorError) as exc:
        raise VerificationError(f"{exc}; {consequence}") from exc
