"""A tuning from the repository to the configs that were found."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tritonpress_generator import builds, first_checks, repository
from tritonpress_generator.errors import InputError
from tritonpress_generator.journal import Journal
from tritonpress_generator.machine import processor
from tritonpress_generator.plans import pending
from tritonpress_generator.progress import Progress
from tritonpress_generator.tune import knobs as turning
from tritonpress_generator.tune.bench import bench
from tritonpress_generator.tune.climb import STEP
from tritonpress_generator.tune.knobs import Configs, Knob
from tritonpress_generator.tune.load import Traffic
from tritonpress_generator.tune.session import Found, Session, TuneConfig

_FORMAT = 2
"""Of what is kept of a measurement; what was kept in another is measured again."""


def tune(path: Path, config: TuneConfig, work: Path, *, progress: Progress | None = None) -> Found:
    """Returns the configs of the repository `path` that serve the most requests a second within a limit on their p99.

    The repository is only read.

    Args:
        path: The model repository.
        config: See `TuneConfig`.
        work: A folder outside of it where measurements are kept, so that a tuning that was killed goes on.
        progress: Says how far it is.

    Raises:
        InputError: The repository, the scenario or a value is at fault, or the budget too short for one measurement.
        SloError: Nothing keeps the limit; says what came nearest, and what binds.
        TritonpressError: The server does not answer.
    """
    began = time.monotonic()
    config.check()
    _check_work(path, work)
    say = progress or Progress()
    with tempfile.TemporaryDirectory(prefix="tritonpress-") as folder:
        names = [name for name in builds.workloads(path) if builds.owner(path, name) == name]
        if config.scenario is None:
            manifests = {name: _manifest(path, name) for name in names}
            traffic = Traffic.golden(manifests, Path(folder))
        else:
            traffic = Traffic.read(config.scenario)
            _check_asked(path, config.scenario, traffic, names)
            manifests = {name: _manifest(path, name) for name in traffic.models}
        traffic.security = config.security
        configs: Configs = {}
        knobs: list[Knob] = []
        for name, manifest in manifests.items():
            own = turning.read_configs(path, manifest, name)
            knobs += turning.knobs(
                own,
                manifest["steps"],
                workload=name,
                engine=manifest["engine"],
                cores=config.cores or len(os.sched_getaffinity(0)),
                p99_ms=config.p99_ms,
                preferred=_optimised_sizes(path, manifest),
                cache=config.cache,
            )
            configs |= own
        if not knobs:
            raise InputError(f"repository {path}: has nothing to turn; build it with serve.dynamic_batching")
        work.mkdir(parents=True, exist_ok=True)
        journal = Journal(work / f"{_fingerprint(manifests, knobs, traffic, config)}.jsonl")
        say.stage("server")
        with bench(path, configs, knobs, server=config.server, options=config.connection, cache=config.cache) as served:
            session = Session(config, knobs, traffic, journal, served, say, began=began)
            found = session.run()
    say.done()
    changed = turning.changed(configs, knobs, found.best.setting) if _better(found) else {}
    return replace(found, manifests=manifests, configs=configs | changed, changed=frozenset(changed))


def _better(found: Found) -> bool:
    return found.confirmed and (found.gain is None or found.gain >= STEP)


def _check_work(path: Path, work: Path) -> None:
    if work.resolve().is_relative_to(path.resolve()):
        raise InputError(
            f"--work must lie outside of the repository {path}, in which every folder is a model to a server, "
            f"got {work}; give another"
        )
    first_checks.check_work(work)


def _manifest(path: Path, name: str) -> dict[str, Any]:
    """Returns the manifest of what is served, all of whose files are as they were written."""
    manifest = repository.read_manifest(path, name)
    if problems := repository.changed_files(path, manifest):
        raise InputError(f"{name}: {'; '.join(problems)}; the manifest says otherwise: build it again")
    if "ensemble" not in manifest:
        raise InputError(f"{name}: is of a version whose builds cannot be switched; build it again, and tune that")
    if missing := pending.missing(path, manifest):
        raise InputError(
            f"{name}: its plan is pending; run {missing[0]} on a machine with the GPU, and tune there, or give a "
            "--scenario that does not ask it"
        )
    return manifest


def _check_asked(path: Path, scenario: Path, traffic: Traffic, names: Sequence[str]) -> None:
    for model in traffic.models:
        if model not in names:
            raise InputError(
                f"scenario {scenario}: asks {model!r}, which is no workload of {path}; it has {', '.join(names)}"
            )


def _optimised_sizes(path: Path, manifest: Mapping[str, Any]) -> list[int]:
    """Returns the batch sizes for which the profiles of a build's TensorRT plans are optimised."""
    stamps = (stamp for folder in pending.folders(path, manifest) for stamp in pending.plans(folder).values())
    return sorted({int(profile["batch"][1]) for stamp in stamps for profile in stamp.get("profiles", [])})


def _fingerprint(manifests: Mapping[str, Any], knobs: Iterable[Knob], traffic: Traffic, config: TuneConfig) -> str:
    """Returns what tells these measurements from others."""
    known = {
        "format": _FORMAT,
        "builds": {name: manifest["build"] for name, manifest in manifests.items()},
        "knobs": [[knob.key, knob.now, knob.values] for knob in knobs],
        "traffic": traffic.identity,
        "limit": config.p99_ms,
        "server": config.server or processor(),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
