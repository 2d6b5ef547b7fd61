"""The generator, read top to bottom: recipe to checkpoint to engine to model repository."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from tritonpress_generator import broken_graph, evaluate, form_choice, forms, gate, ladder, repository, workplace
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import Answers, golden
from tritonpress_generator.compression import Material
from tritonpress_generator.errors import GateError
from tritonpress_generator.export import check_size
from tritonpress_generator.gate import Verdict
from tritonpress_generator.infer import Infer, latency_ms
from tritonpress_generator.kept import Kept
from tritonpress_generator.layouts import Parts
from tritonpress_generator.machine import processor, versions
from tritonpress_generator.plans import pending
from tritonpress_generator.progress import Progress
from tritonpress_generator.scores import Scores
from tritonpress_generator.workload import Workload

LATENCY_TOKENS = 32
"""Of the sequence whose time is in the table of stages, where texts may be so long."""


@dataclass(frozen=True)
class Row:
    """One line of the closing table."""

    stage: str
    size_bytes: int
    latency_ms: float
    """Of one sequence of `Built.tokens`, in process."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class Built:
    """What a build has written."""

    folder: Path
    manifest: dict[str, Any]
    rows: list[Row]
    tokens: int
    """Of the sequence whose time the rows have."""


def build(
    recipe_path: Path,
    out: Path,
    *,
    data: Path | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
    canary: bool = False,
    keep: int = repository.KEEP,
) -> Built:
    """Returns what was written into the model repository `out` for the recipe at `recipe_path`.

    Args:
        recipe_path: The recipe.
        out: The repository.
        data: The folder of what the recipe's passes train and measure on; default: the recipe's.
        work: Where their trainings keep their states, from which a killed build goes on; default: nowhere.
        progress: Says how far it is.
        canary: Whether the build is placed beside the one that serves, under the canary's name.
        keep: How many builds that no ensemble names stay.

    Raises:
        InputError: The recipe, the checkpoint or the data is at fault.
        GateError: What would be served is less accurate than agreed, or takes more memory; `out` is as it was.
    """
    recipe = recipes.load(recipe_path)
    return build_recipe(recipe, out, data=data, work=work, progress=progress, canary=canary, keep=keep)


def build_recipe(
    recipe: recipes.Recipe,
    out: Path,
    *,
    data: Path | None = None,
    work: Path | None = None,
    progress: Progress | None = None,
    canary: bool = False,
    keep: int = repository.KEEP,
) -> Built:
    """Returns what was written into the model repository `out` for `recipe`; the product, stage by stage.

    Raises:
        InputError: The checkpoint or the data is at fault.
        GateError: What would be served is less accurate than agreed, or takes more memory; `out` is as it was.
    """
    say = progress or Progress()
    repository.check_writable(out)
    if canary:
        repository.check_canary(out, recipe.name)
    workload = Workload.load(recipe, say)
    check_size(workload.model, [stage.word for stage in recipe.passes])

    say.stage("baseline in FP32")
    answers = workload.answers(workload.baseline)
    size = workload.checkpoint.size_bytes
    before = workload.scores(answers, answers)
    gate.check_baseline(recipe.gate, before)
    rows = [Row("torch FP32", size, _latency(workload.baseline, workload), before.metrics)]
    material = workload.material(data, work)
    workload, passes = _compressed(workload, answers, material, rows, say)

    say.stage("export to ONNX" + "".join(f", {stage.word}" for stage in recipe.graph))
    # A search keeps in `work` what it has computed.
    kept = Kept(out / recipe.name / "kept", None if work is None else work / "kept")
    baseline = evaluate.keep_baseline(kept, workload.checkpoint, workload.data.inputs, answers)
    source = workload.source(kept, material)
    candidates = forms.compile_forms(recipe, source)
    say.stage(f"lengths: {', '.join(candidates)}")
    form, lengths_entry = form_choice.choose(recipe, candidates, source)

    say.stage(f"gate: {recipe.gate.metric}")
    exported = workload.scores(workload.answers(form.fp32_infer), answers)
    rows.append(Row("ONNX FP32", form.fp32.ByteSize(), _latency(form.fp32_infer, workload), exported.metrics))
    gate.check(recipe.gate, before, exported, stage="the export to ONNX")
    with workplace.scratch() as engines:
        chosen = _climb(workload, form, source, answers, engines)
        rows += chosen.rows

        say.stage(f"repository {out}")
        manifest = _manifest(workload, form, rows, chosen)
        manifest |= {"lengths": lengths_entry, "passes": passes, "calibration": source.calibrated_on}
        manifest["baseline"] = baseline
        manifest["gate"]["read_elsewhere"] = gate.read_elsewhere(recipe, material.folder)
        parts = Parts(
            recipe=recipe,
            lengths=form.lengths,
            tokenizer=workload.tokenizer,
            encoding=form.encoding,
            engine=chosen.folder,
            asked=form.asked,
            write_postprocessing=workload.postprocessor.save,
        )
        layout = recipe.layout.module
        folder = repository.write(
            out,
            recipe.name,
            layout.steps(parts),
            lambda names: layout.config(parts, names),
            manifest,
            kept,
            canary=canary,
            keep=keep,
        )
    written = repository.read_manifest(out, folder.name)
    say.done()
    return Built(folder, written, rows, _tokens(recipe))


def _compressed(
    workload: Workload, baseline: Answers, material: Material, rows: list[Row], say: Progress
) -> tuple[Workload, dict[str, Any]]:
    """Returns the workload after the recipe's passes, and what each has done, by its name; adds a row for each.

    A pass may mend what the one before it has broken, so the gate holds what the last one leaves; where it is missed,
    the stage that broke it is named.

    Raises:
        InputError: A pass cannot be applied to this model, or lacks examples.
        GateError: What is left is less accurate than agreed.
    """
    recipe = workload.recipe
    before = workload.scores(baseline, baseline)
    reports: dict[str, Any] = {}
    broken_after, missed = "", None
    passed = zip(recipe.pass_names, workload.passed(material, say), strict=True)
    for place, (name, (stage, compressed, changed)) in enumerate(passed, start=1):
        check_size(compressed.model, [later.word for later in recipe.passes[place:]])
        # By its word the model has the last one's alone; that of `restore` is of the passes that it does again.
        workload, report = changed, compressed.report
        reports |= {name: report[stage.word]} if stage.word in report else report
        scores = workload.scores(workload.answers(workload.infer), baseline)
        rows.append(Row(name, compressed.size_bytes, _latency(workload.infer, workload), scores.metrics))
        try:
            gate.check(recipe.gate, before, scores, stage=name)
        except GateError as exc:
            broken_after, missed = broken_after or name, exc
        else:
            broken_after, missed = "", None
    if missed is not None:
        raise _named(missed, broken_after)
    return workload, reports


def _named(missed: GateError, stage: str) -> GateError:
    """Returns the error with the stage after which the gate was missed first."""
    return type(missed)(f"{missed.reason} (first missed after {stage})", missed.remedy, stage=stage)


@dataclass(frozen=True)
class _Chosen:
    """The engine that will be served."""

    folder: Path
    rows: list[Row]
    """Of all rungs that were tried."""
    verdict: Verdict
    refused: dict[str, str]
    """Why other rungs were not taken, by name."""
    answers: Answers
    """To the labelled data."""
    measured: dict[str, Any]
    """Of the engine, beside its metric."""


def _climb(workload: Workload, form: forms.Form, source: forms.Source, baseline: Answers, work: Path) -> _Chosen:
    """Returns the lowest rung of the engine's ladder that keeps the metric, and is faster than the one above it.

    Args:
        workload: What is built.
        form: Its model.
        source: What that was made of.
        baseline: The FP32 checkpoint's answers to the labelled data.
        work: A folder for the engines.

    Raises:
        GateError: None keeps the metric, or what is chosen takes more than the recipe allows.
    """
    engine = workload.recipe.engine
    graphs = form.rungs(engine)
    # One rung is what the recipe's passes have made.
    stages = " + ".join(stage.word for stage in workload.recipe.graph) if len(graphs) == 1 else ""
    rows: dict[str, Row] = {}
    scores: dict[str, Scores] = {}
    answers: dict[str, Answers] = {}
    here = engine.module.runs_here()
    # An engine that measures its rungs itself needs all of them at once.
    timed = getattr(engine.module, "times_ms", None) if here else None
    loaded: dict[str, Infer] = {}
    for name, graph in graphs.items():
        engine.module.build({name: graph}, work / name / "1", engine.config, form.asked)
        infer = form.loaded(engine, work / name / "1")
        answers[name] = workload.answers(infer)
        scores[name] = workload.scores(answers[name], baseline)
        rows[name] = Row(stages or name, graph.ByteSize(), _latency(infer, workload), scores[name].metrics)
        if timed is not None:
            loaded[name] = infer
    times = {name: row.latency_ms for name, row in rows.items()} if here else {}
    if timed is not None:
        times = timed(loaded, engine.config, form.asked)
    rungs = [ladder.Rung(name, scores[name], times.get(name)) for name in graphs]
    try:
        climbed = ladder.climb(workload.recipe.gate, workload.scores(baseline, baseline), rungs, stage=stages)
    except GateError as exc:
        if len(graphs) > 1 or len(workload.recipe.graph) < 2:
            raise
        raise _named(exc, broken_graph.first_missed(workload, form, source, baseline)) from exc
    served = [*climbed.accepted][-1]
    folder = work / served / "1"
    if not here:
        # Which of them is the fastest is measured where they can be run.
        folder = work / "pending" / "1"
        engine.module.build({name: graphs[name] for name in climbed.accepted}, folder, engine.config, form.asked)
    measured = engine.module.measured(folder, engine.config, form.asked)
    return _Chosen(folder, [*rows.values()], climbed.accepted[served], climbed.refused, answers[served], measured)


def _manifest(workload: Workload, form: forms.Form, rows: list[Row], chosen: _Chosen) -> dict[str, Any]:
    """Returns what is known of the build."""
    recipe = workload.recipe
    return {
        "workload": recipe.name,
        "task": recipe.task.word,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "checkpoint": {
            "source": workload.checkpoint.source,
            "revision": recipe.checkpoint.revision,
            "sha256": workload.checkpoint.sha256,
            "adapter_sha256": workload.checkpoint.adapter_sha256,
            "bytes": workload.checkpoint.size_bytes,
        },
        "recipe": recipe.text,
        "versions": versions() | recipe.engine.module.versions(),
        "gated_on": {"machine": platform.machine(), "processor": processor()},
        "parity": asdict(form.parity),
        "graph": form.report,
        "engine": recipe.engine.word,
        "layout": recipe.layout.word,
        "gate": asdict(chosen.verdict),
        "refused": chosen.refused,
        "measured": chosen.measured,
        "stages": [asdict(row) for row in rows],
        "golden": {
            "score_tolerance": evaluate.tolerance(pending.plans(chosen.folder)),
            "requests": golden(workload.data.inputs, chosen.answers),
        },
    }


def _latency(infer: Infer, workload: Workload) -> float:
    feed = dict.fromkeys(workload.signature.inputs, np.ones((1, _tokens(workload.recipe)), np.int64))
    return latency_ms(infer, feed)


def _tokens(recipe: recipes.Recipe) -> int:
    """Returns `LATENCY_TOKENS`, or the most that the engine takes."""
    return min(LATENCY_TOKENS, recipe.serve.max_length)
