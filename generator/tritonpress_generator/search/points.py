"""The points of the front: what the gate says of them, and the recipe of each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tritonpress_generator import recipe as recipes
from tritonpress_generator.search.measure import Workshop
from tritonpress_generator.search.rounds import Rounds
from tritonpress_generator.search.trials import Trial


@dataclass(frozen=True)
class Point:
    """One point of the front: it has passed the gate, and its recipe builds it again."""

    name: str
    """The workload's."""
    label: str
    """What it is, in few words."""
    trial: Trial
    recipe: Path
    build: str
    """The hash of what its recipe builds."""
    gate: dict[str, Any]
    """The gate's verdict."""
    size_bytes: int
    """Of all files that are served."""
    texts_per_s: float
    """Of the engine with all its instances; measured in turn with the reference, as is the next."""
    latency_ms: float
    """Of a text alone, on all cores; the mean over the sample texts."""
    speedup: float
    """Its texts per second over the reference's."""


def write(
    trials: list[Trial],
    verdicts: Mapping[str, dict[str, Any]],
    rounds: Mapping[str, tuple[Rounds, Rounds]],
    workshop: Workshop,
    recipe: recipes.Recipe,
    target: Path,
) -> list[Point]:
    """Returns the points after writing the recipe of each into the folder `target`.

    Args:
        trials: Of the points, in their order.
        verdicts: What their builds were and what the gate says of them, by key.
        rounds: Their times, and those of the reference in turn with them, by key.
        workshop: Knows their recipes.
        recipe: That was searched.
        target: Is made; what an earlier search has written there is removed.
    """
    target.mkdir(exist_ok=True)
    for old in target.glob("front-*.yaml"):
        old.unlink()
    points = []
    for number, trial in enumerate(trials, start=1):
        result, (times, beside) = verdicts[trial.candidate.key], rounds[trial.candidate.key]
        verdict = result["verdict"]
        folder = os.path.relpath(recipe.folder, target)
        text = yaml.safe_dump(
            workshop.written(trial.candidate) | {"folder": folder}, sort_keys=False, allow_unicode=True
        )
        path = target / f"front-{number:02}.yaml"
        label = workshop.label(trial.candidate)
        path.write_text(
            f"# Point {number} of {len(trials)} of the search of {recipe.path.name}: {label}.\n"
            f"# Gate: {verdict['metric']} {verdict['served']:.6f}, limit {verdict['limit']:.6f}; "
            f"build {result['build']}\n"
            f"{text}",
            encoding="utf-8",
        )
        recipes.load(path)
        speedup = times.to(beside).throughput
        texts_per_s, latency_ms = times.medians()
        points.append(
            Point(
                recipe.name,
                label,
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
