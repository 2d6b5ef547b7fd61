"""Scores a recipe's model, or a live endpoint that serves it, on labelled data: one definition, whatever answers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tritonpress_client import Connection, TritonpressError

from tritonpress_generator import builds, forms, gate
from tritonpress_generator import recipe as recipes
from tritonpress_generator import repository as repositories
from tritonpress_generator.answering import Answers, Texts, golden, listed, unlisted
from tritonpress_generator.asking import ask
from tritonpress_generator.checkpoint import Checkpoint
from tritonpress_generator.errors import InputError
from tritonpress_generator.first_checks import IN_PROCESS, check_target
from tritonpress_generator.kept import Kept
from tritonpress_generator.model_control import build_of, check_serves
from tritonpress_generator.plans import pending
from tritonpress_generator.progress import Progress
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.workload import Workload, scores_of

_TIMEOUT_S = 60.0
_POLL_S = 0.2
_TOLERANCE = 1e-4
"""Of a CPU's scores: FP32 pooling rounds differently in a padded batch, by about 1e-7; the encoder itself does not."""
_TOLERANCE_OF_PLANS = 0.02
"""Of a GPU's scores: its kernels, and so their rounding, change with the batch. A guess until it is measured."""


def evaluate(
    recipe_path: Path,
    target: str,
    *,
    dataset: Path | None = None,
    data: Path | None = None,
    work: Path | None = None,
    repository: Path | None = None,
    canary: bool = False,
    wait_s: float = 0.0,
) -> dict[str, float]:
    """Returns the task's metrics of what answers.

    Args:
        recipe_path: The recipe.
        target: `torch` (the checkpoint in FP32), `onnx` (its export after the passes), `engine` (after the graph
            passes, in the recipe's engine), or HOST:PORT of a Triton that serves the recipe's workload.
        dataset: Labelled data of the task; default: the gate's.
        data: The folder of what the recipe's passes train and measure on; default: the recipe's.
        work: Where their trainings have kept their states.
        repository: What the endpoint serves; holds it to its gate, and its manifest to what it answered.
        canary: Whether the endpoint is asked for the workload's canary.
        wait_s: How long an endpoint may take until it is ready.

    Raises:
        InputError: The recipe, the checkpoint or the data is at fault, or the endpoint serves another build than
            `repository`, or two while it is asked.
        GateError: The endpoint is less accurate than the build of `repository` was allowed to be.
        TritonpressError: The endpoint is not there, or refuses a request.
    """
    recipe = recipes.load(recipe_path)
    check_target(target, dataset=dataset, repository=repository, canary=canary)
    own = recipe
    if dataset is not None:
        recipe = replace(own, gate=own.gate.model_copy(update={"dataset": str(dataset.resolve())}))
    say = Progress()
    asked = recipe.task.module.load_data(recipe)
    if target not in IN_PROCESS:
        name = builds.asked(repository, recipe.name, of_canary=canary)
        say.stage(f"{name} at {target}")
        answers = _served(target, recipe, name, asked, repository, wait_s)
        say.done()
        return scores_of(recipe, asked, answers, None).metrics
    # The engine is the one that a build makes: it may be calibrated on the gate's texts, never on those asked here.
    workload = Workload.load(recipe if target == "torch" else own, say)
    infer = workload.baseline
    if target != "torch":
        material = workload.material(data, work)
        for _, _, changed in workload.passed(material, say):
            workload = changed
        say.stage("export to ONNX" + "".join(f", {stage.word}" for stage in recipe.graph))
        # All forms of the lengths answer alike; this one is there for every encoder.
        exact = replace(own, lengths=recipes.lengths_of("exact", own.engine, path=recipe_path))
        form = forms.compile_forms(exact, workload.source(material=material))["exact"]
        infer = form.fp32_infer if target == "onnx" else form.infer(recipe.engine)
    say.stage(f"answers of {target}")
    workload = replace(workload, data=asked)
    metrics = workload.metrics(workload.answers(infer))
    say.done()
    return metrics


def _served(target: str, recipe: Recipe, ensemble: str, data: Any, repository: Path | None, wait_s: float) -> Answers:
    """Returns what a server's ensemble answers, which with `repository` is held to the gate of the build there."""
    # A repository that cannot be read is refused before the server is asked.
    manifest = None if repository is None else repositories.read_manifest(repository, ensemble)
    with Connection(target, timeout_s=_TIMEOUT_S) as connection:
        _wait(connection, ensemble, wait_s)
        before = build_of(connection.model_config(ensemble))
        if repository is not None and manifest is not None:
            check_serves(target, repository, ensemble, manifest["build"], before)
        answers = ask(connection, ensemble, data.inputs, batch=recipe.serve.max_batch_size)
        after = build_of(connection.model_config(ensemble))
    if after != before:
        raise InputError(
            f"{target}: must serve one build of {ensemble} while it is asked, got {before} and {after}; ask again"
        )
    if repository is not None and manifest is not None:
        _gate(repository, recipe, manifest, data, answers)
    return answers


def _wait(connection: Connection, model: str, seconds: float) -> None:
    """Returns when `model` is ready, or the time is over: then the first request says what is wrong."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(TritonpressError):
            if connection.ready(model):
                return
        time.sleep(_POLL_S)


def keep_baseline(kept: Kept, checkpoint: Checkpoint, texts: Texts, answers: Answers) -> str:
    """Returns the key under which `kept` has what servers of a build are gated against, for the build's manifest.

    It is of the checkpoint and the texts, so that builds of others, such as a canary, keep theirs beside it.
    """
    digest = _digest(texts)
    key = f"baseline of {checkpoint.sha256} {checkpoint.adapter_sha256} to {digest}"
    kept.put(key, {"texts": digest, "answers": listed(answers)})
    return key


def _baseline(repository: Path, recipe: Recipe, manifest: dict[str, Any], texts: Texts) -> Answers:
    """Returns the answers to `texts` of the FP32 checkpoint that was built, as the build has kept them.

    Raises:
        InputError: It has not, or other texts were asked.
    """
    folder = repository / recipe.name / "kept"
    kept = Kept(folder).get(manifest["baseline"]) if "baseline" in manifest else None
    if kept is not None and kept["texts"] == _digest(texts):
        return unlisted(kept["answers"])
    found = "none" if kept is None else "those to other data"
    raise InputError(
        f"--repository: {folder} must have FP32's answers to the gate's data, has {found}; build the workload again"
    )


def tolerance(plans: Collection[Path]) -> float:
    """Returns by how much a score may differ from the golden one, where these plans are served, or none."""
    return _TOLERANCE_OF_PLANS if plans else _TOLERANCE


def _digest(texts: Texts) -> str:
    return hashlib.sha256(json.dumps({name: list(column) for name, column in texts.items()}).encode()).hexdigest()


def _gate(repository: Path, recipe: Recipe, manifest: dict[str, Any], data: Any, answers: Answers) -> None:
    """Holds what a server has answered to the gate of the build that it serves, and records it in the manifest.

    Raises:
        InputError: The checkpoint or the data of the gate are others than they were.
        GateError: The metric is below the limit.
    """
    baseline = _baseline(repository, recipe, manifest, data.inputs)
    before, after = (scores_of(recipe, data, given, baseline) for given in (baseline, answers))
    verdict = gate.check(recipe.gate, before, after)
    requests = golden(data.inputs, answers)
    plans = {
        path: stamp for folder in pending.folders(repository, manifest) for path, stamp in pending.plans(folder).items()
    }
    known = {
        "gate": asdict(verdict),
        "plans": {str(path.relative_to(repository)): stamp for path, stamp in plans.items()},
        "golden": {"score_tolerance": tolerance(plans), "requests": requests},
    }
    stamps = [path.with_name(f"{path.name}.json") for path in plans]
    repositories.record(repository, recipe.name, manifest["build"], known, [*plans, *stamps])
