"""The generator, read top to bottom: recipe to checkpoint to engine to model repository."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tritonpress_generator import forms, gate, repository
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import Answers, Texts, plain
from tritonpress_generator.infer import Infer, latency_ms
from tritonpress_generator.layouts import Parts
from tritonpress_generator.progress import Progress
from tritonpress_generator.signature import Signature
from tritonpress_generator.workload import Workload

LATENCY_TOKENS = 32
_GOLDEN_REQUESTS = 12


@dataclass(frozen=True)
class Row:
    """One line of the closing table."""

    stage: str
    size_bytes: int
    latency_ms: float
    """Of one sequence of `LATENCY_TOKENS` tokens, in process."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class Built:
    """What a build has written."""

    folder: Path
    manifest: dict[str, Any]
    rows: list[Row]


def build(recipe_path: Path, out: Path, *, progress: Progress | None = None) -> Built:
    """Returns what was written into the model repository `out` for the recipe at `recipe_path`.

    Raises:
        InputError: The recipe, the checkpoint or the data is at fault.
        GateError: What would be served is less accurate than agreed; `out` is as it was.
    """
    return build_recipe(recipes.load(recipe_path), out, progress=progress)


def build_recipe(recipe: recipes.Recipe, out: Path, *, progress: Progress | None = None) -> Built:
    """Returns what was written into the model repository `out` for `recipe`; the product, stage by stage.

    Raises:
        InputError: The checkpoint or the data is at fault.
        GateError: What would be served is less accurate than agreed; `out` is as it was.
    """
    say = progress or Progress()
    repository.check_writable(out)
    workload = Workload.load(recipe, say)
    engine, signature = recipe.engine, workload.signature

    say.stage("baseline in FP32")
    baseline = workload.metrics(workload.answers(workload.baseline))
    size = workload.checkpoint.size_bytes
    rows = [Row("torch FP32", size, _latency(workload.baseline, signature), baseline)]

    say.stage("export to ONNX" + "".join(f", {stage.word}" for stage in recipe.graph))
    source = workload.source()
    candidates = forms.compile_forms(recipe, source)
    say.stage(f"lengths: {', '.join(candidates)}")
    form, lengths_entry = forms.choose(recipe, candidates, source)
    infer = form.infer(engine)

    say.stage(f"gate: {recipe.gate.metric}")
    fp32 = workload.metrics(workload.answers(form.fp32_infer))
    rows.append(Row("ONNX FP32", form.fp32_bytes, _latency(form.fp32_infer, signature), fp32))
    answers = workload.answers(infer)
    served = workload.metrics(answers)
    stages = " + ".join([stage.word for stage in recipe.graph] or [engine.word])
    rows.append(Row(stages, form.model.ByteSize(), _latency(infer, signature), served))
    verdict = gate.check(recipe.gate, baseline, served)

    say.stage(f"repository {out}")
    manifest = {
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
        "versions": _versions() | engine.module.versions(),
        "gated_on": {"machine": platform.machine(), "processor": processor()},
        "parity": asdict(form.parity),
        "lengths": lengths_entry,
        "layout": recipe.serve.steps,
        "gate": asdict(verdict),
        "stages": [asdict(row) for row in rows],
        "golden": {
            # FP32 pooling rounds differently in a padded batch, by about 1e-7; the encoder itself does not.
            "score_tolerance": 1e-4,
            "requests": _golden(workload.data.inputs, answers),
        },
    }
    parts = Parts(
        recipe=recipe,
        lengths=form.lengths,
        tokenizer=workload.tokenizer,
        encoding=form.encoding,
        model=form.model,
        signature=form.signature,
        write_postprocessing=workload.postprocessor.save,
    )
    steps = recipe.layout.steps(parts)
    folder = repository.write(out, recipe.name, steps, lambda names: recipe.layout.config(parts, names), manifest)
    written = repository.read_manifest(out, recipe.name)
    say.done()
    return Built(folder, written, rows)


def processor() -> str:
    """Returns the processor's name as the system gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _golden(texts: Texts, answers: Answers) -> list[dict[str, Any]]:
    """Returns requests, spread over what was asked, with the answers that they must get."""
    total = len(next(iter(texts.values())))
    chosen = np.linspace(0, total - 1, min(_GOLDEN_REQUESTS, total)).round().astype(int)
    return [
        {
            "inputs": {name: column[i] for name, column in texts.items()},
            "outputs": {name: [plain(value) for value in answer[i]] for name, answer in answers.items()},
        }
        for i in chosen
    ]


def _latency(infer: Infer, signature: Signature) -> float:
    feed = dict.fromkeys(signature.inputs, np.ones((1, LATENCY_TOKENS), np.int64))
    return latency_ms(infer, feed)


def _versions() -> dict[str, str]:
    packages = ("tritonpress", "torch", "transformers", "tokenizers", "onnx", "tritonclient", "nvidia-pytriton")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
