"""A search, read top to bottom: the space, the loop, the gate on what is left, and a recipe for each point."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tritonpress_generator import form_choice, forms, gate, named_files, repository, workplace
from tritonpress_generator import recipe as recipes
from tritonpress_generator.build import build
from tritonpress_generator.compression import Material
from tritonpress_generator.errors import GateError, InputError, VerificationError
from tritonpress_generator.first_checks import check_search
from tritonpress_generator.journal import Journal
from tritonpress_generator.machine import processor, versions
from tritonpress_generator.progress import Progress
from tritonpress_generator.search.budget import Budget
from tritonpress_generator.search.estimate import Estimator, prunable
from tritonpress_generator.search.loop import Loop
from tritonpress_generator.search.measure import Workshop
from tritonpress_generator.search.points import Point, write
from tritonpress_generator.search.rounds import Rounds
from tritonpress_generator.search.settings import Config, results_of
from tritonpress_generator.search.space import Candidate, Space
from tritonpress_generator.search.trials import Trial
from tritonpress_generator.structure import depth
from tritonpress_generator.workload import Workload

_ESTIMATED_ON = 512
"""Training examples on which gradients are computed."""


@dataclass(frozen=True)
class Found:
    """What a search has found."""

    points: list[Point]
    """The front, the best by the objective first; that one was built into the repository."""
    folder: Path
    """Where the recipes and the report lie."""
    trials: list[Trial]
    """All that was scored in full."""
    reference: Candidate
    floor: float
    """The least metric on the held-out examples."""
    metric: str
    """What was scored on them."""
    objective: str
    labels: dict[str, str]
    """What the trials are, by their candidates' keys."""
    refused: dict[str, str]
    """Why others were not taken, by what they are."""
    minutes: float


def search(
    recipe_path: Path,
    out: Path,
    *,
    data: Path | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Found:
    """Returns the front that was found for the recipe at `recipe_path`, the best of which is built into `out`.

    Args:
        recipe_path: The recipe; its `search` says what is tried, its `passes` by which settings.
        out: The model repository.
        data: The folder of the labelled examples; default: the recipe's.
        work: Keeps what was found, from which a killed search goes on; default: nowhere.
        progress: Says how far it is.

    Raises:
        InputError: The recipe, the checkpoint or the data is at fault, or the budget is too short for one candidate.
        GateError: Nothing that was tried has passed the gate; `out` is as it was.
        VerificationError: The best point's recipe has built something else than before.
    """
    began = time.monotonic()
    say = progress or Progress()
    repository.check_writable(out)
    check_search(recipe_path, work)
    recipe = recipes.load(recipe_path)
    if not recipe.engine.module.runs_here():
        raise InputError(
            f"{recipe_path}: engine: a search measures each candidate, and {recipe.engine.word} does not run on this "
            "machine; search where it does, or with another engine"
        )
    config = recipe.search or Config()
    workload = Workload.load(recipe, say)
    gate.check_examples(recipe.gate, len(next(iter(workload.data.inputs.values()))))
    with nullcontext(work) if work else workplace.scratch() as own:
        material = workload.material(data, own)
        folder = own / f"search-{_fingerprint(workload, material, config)[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        with workplace.held(folder) as is_held:
            if not is_held:
                raise InputError(
                    f"search: another search is at {folder}; wait until that has ended, or give another --work"
                )
            loop, workshop = _begun(workload, material, config, folder, say, began=began)
            reference = loop.begin()
            loop.run()
            points, times = _in_turn(loop.gate_front(), reference, workshop, config)
            if not points:
                raise _nothing(recipe, loop)
            say.stage("recipes of the front")
            target = results_of(recipe_path)
            written = write(points, loop.passed, times, workshop, recipe, target)
            say.stage(f"the best of {len(written)} points: {written[0].label}")
            again = build(written[0].recipe, out, data=material.folder, work=own, progress=Progress(shown=False))
            if again.manifest["build"] != written[0].build:
                raise VerificationError(
                    f"search: {written[0].recipe} must build {written[0].build} again, has built "
                    f"{again.manifest['build']}; what a pass or the engine computes is not the same twice on this "
                    "machine"
                )
            say.done()
            metric = str(recipe.finetune.module.METRIC)
            return Found(
                written, target, [*loop.full.values()], reference.candidate, loop.floor, metric, config.objective,
                {trial.candidate.key: loop.label(trial) for trial in loop.full.values()}, loop.refused,
                loop.budget.spent_s / 60,
            )  # fmt: skip


def _begun(
    workload: Workload, material: Material, config: Config, folder: Path, say: Progress, *, began: float
) -> tuple[Loop, Workshop]:
    """Returns the loop before its first candidate, and where candidates are made."""
    recipe = workload.recipe
    say.stage("what matters to the task")
    kinds = {group.kind for group in prunable(workload.model)}
    lengths = recipe.raw.get("serve", {}).get("lengths", "auto")
    if len(recipe.lengths) > 1 and config.space.lengths is None:
        # Remembered, since another choice would be another reference; of each graph its own.
        of_graph = hashlib.sha256(json.dumps(recipe.raw.get("graph")).encode()).hexdigest()[:12]
        chosen = folder / f"lengths-{of_graph}.json"
        if not chosen.exists():
            source = workload.source(material=material)
            form, _ = form_choice.choose(recipe, forms.compile_forms(recipe, source), source)
            workplace.replace(chosen, json.dumps(form.lengths.word), folder)
        lengths = json.loads(chosen.read_text(encoding="utf-8"))
    space = Space.load(recipe, config, depth=depth(workload.model), kinds=sorted(kinds), lengths=lengths)
    estimator = Estimator(material.original, material, samples=_ESTIMATED_ON, length=space.length)
    workshop = Workshop(workload, material, space, config, folder / "engines")
    floor = recipe.gate.keep * workshop.baseline()
    journal = Journal(folder / f"against-{space.reference.key}.jsonl")
    budget = Budget(config.budget_minutes, space, journal, began=began, training_s=workshop.training_s)
    loop = Loop(workshop, space, config, estimator=estimator, journal=journal, budget=budget, floor=floor, say=say)
    return loop, workshop


def _in_turn(
    trials: list[Trial], reference: Trial, workshop: Workshop, config: Config
) -> tuple[list[Trial], dict[str, tuple[Rounds, Rounds]]]:
    """Returns the trials, the best by the objective first, and the times of each and of the reference beside it."""
    rounds = workshop.timed_front(reference.candidate, [trial.candidate for trial in trials])

    def objective(trial: Trial) -> float:
        own, beside = rounds[trial.candidate.key]
        times = own.to(beside)
        by = {"throughput": -times.throughput, "latency": times.latency, "size": float(trial.size_bytes)}
        return by[config.objective]

    return sorted(trials, key=objective), rounds


def _nothing(recipe: recipes.Recipe, loop: Loop) -> GateError:
    """Returns the error of a search that has nothing to show."""
    best = max(loop.full.values(), key=lambda trial: trial.score, default=None)
    tried = f"{len(loop.full) + len(loop.gone)} candidates"
    if loop.gone:
        why = next(iter(loop.gone.values()))
        unbuilt = f", {len(loop.unbuilt)} were not built in the time" if loop.unbuilt else ""
        more = "raise search.budget_minutes, or " if loop.unbuilt else ""
        return GateError(f"search: none of {tried} has passed the gate{unbuilt}; {why.reason}", f"{more}{why.remedy}")
    metric = recipe.finetune.module.METRIC
    return GateError(
        f"search: none of {tried} keeps {metric} at or above {loop.floor:.4f} on the held-out examples; the nearest, "
        f"{loop.label(best) if best else 'none'}, has {best.score if best else 0:.4f}",
        "lower gate.keep, or let the space have milder candidates",
    )


def _fingerprint(workload: Workload, material: Material, config: Config) -> str:
    """Returns a hash of all that results depend on; what is searched and for how long is no part of it."""
    recipe, checkpoint = workload.recipe, workload.checkpoint
    raw = {name: value for name, value in recipe.raw.items() if name not in {"search", "graph"}}
    measured = [config.examples, config.rounds, config.slice_s]
    machine = [processor(), len(os.sched_getaffinity(0))]
    made_with = versions() | recipe.engine.module.versions()
    weights = [checkpoint.sha256, checkpoint.adapter_sha256]
    files = [
        named_files.digest(recipe, material.folder),
        named_files.checkpoint_digest(checkpoint.folder, checkpoint.adapter),
    ]
    known = [raw, measured, machine, made_with, weights, files]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
