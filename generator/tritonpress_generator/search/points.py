"""The points of the front: what the gate says of them, and the recipe of each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tritonpress_generator import recipe as recipes
from tritonpress_generator import repository
from tritonpress_generator.build import build_recipe
from tritonpress_generator.compression import Material
from tritonpress_generator.errors import GateError
from tritonpress_generator.progress import Progress
from tritonpress_generator.search.loop import Loop
from tritonpress_generator.search.measure import Rounds, Workshop
from tritonpress_generator.search.space import Candidate
from tritonpress_generator.search.trials import Trial

REFERENCE = "reference"
"""Under this name are the times of the model as it is, which the others are relative to."""


@dataclass(frozen=True)
class Point:
    """One point of the front: it has passed the gate, and its recipe builds it again."""

    name: str
    """The workload's."""
    trial: Trial
    recipe: Path
    build: str
    """The hash of what its recipe builds."""
    gate: dict[str, Any]
    """The gate's verdict."""
    size_bytes: int
    """Of all files that are served."""
    texts_per_s: float
    """Of the engine with all its instances; measured in turn with the other points, as is the next."""
    latency_ms: float
    """Of a text alone, on all cores; the mean over the sample texts."""
    speedup: float
    """Its texts per second over the reference's."""

    @property
    def label(self) -> str:
        """What it is, in few words."""
        return self.trial.candidate.label


def gated(loop: Loop, workshop: Workshop, material: Material, folder: Path) -> dict[str, dict[str, Any]]:
    """Returns what the gate says of each point of the front that has passed it, by key.

    A point that the gate refuses is relaxed and tried again while there is time.

    Args:
        loop: After its last round.
        workshop: Knows the candidates' recipes.
        material: Of the search.
        folder: For what is built and gated.
    """
    passed: dict[str, dict[str, Any]] = {}
    while pending := [trial for trial in loop.front() if trial.candidate.key not in passed]:
        candidate = pending[0].candidate

        def compute(candidate: Candidate = candidate) -> dict[str, Any]:
            scratch = folder / "built"
            shutil.rmtree(scratch, ignore_errors=True)
            try:
                built = build_recipe(
                    workshop.recipe(candidate), scratch, data=material.folder, work=material.work,
                    progress=Progress(shown=False),
                )  # fmt: skip
            except GateError as exc:
                return {"gate": exc.reason}
            manifest = built.manifest
            shutil.rmtree(scratch)
            size = repository.size_bytes(manifest)
            return {"build": manifest["build"], "verdict": manifest["gate"], "size_bytes": size}

        result = loop.known("build", candidate, compute, always=True) or {}
        if "build" in result:
            passed[candidate.key] = result
            continue
        loop.refuse(candidate, result.get("gate") or result["refused"])
    return passed


def write(
    trials: list[Trial],
    verdicts: Mapping[str, dict[str, Any]],
    rounds: Mapping[str, Rounds],
    workshop: Workshop,
    recipe: recipes.Recipe,
    target: Path,
) -> list[Point]:
    """Returns the points after writing the recipe of each into the folder `target`.

    Args:
        trials: Of the points, in their order.
        verdicts: What `gated` says of them, by key.
        rounds: Their times, by key, and those of `REFERENCE`.
        workshop: Knows their recipes.
        recipe: That was searched.
        target: Is made; what an earlier search has written there is removed.
    """
    target.mkdir(exist_ok=True)
    for old in target.glob("front-*.yaml"):
        old.unlink()
    points = []
    for number, trial in enumerate(trials, start=1):
        result, times = verdicts[trial.candidate.key], rounds[trial.candidate.key]
        verdict = result["verdict"]
        folder = os.path.relpath(recipe.folder, target)
        text = yaml.safe_dump(
            workshop.written(trial.candidate) | {"folder": folder}, sort_keys=False, allow_unicode=True
        )
        path = target / f"front-{number:02}.yaml"
        path.write_text(
            f"# Point {number} of {len(trials)} of the search of {recipe.path.name}: {trial.candidate.label}.\n"
            f"# Gate: {verdict['metric']} {verdict['served']:.6f}, limit {verdict['limit']:.6f}; "
            f"build {result['build']}\n"
            f"{text}",
            encoding="utf-8",
        )
        recipes.load(path)
        speedup = times.to(rounds[REFERENCE]).throughput
        texts_per_s, latency_ms = times.medians()
        points.append(
            Point(
                recipe.name,
                trial,
                path,
                result["build"],
                verdict,
                result["size_bytes"],
                texts_per_s,
                latency_ms,
                speedup,
            )
        )
    return points
