"""The generator, read top to bottom: recipe to checkpoint to engine to model repository."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tritonpress_generator import export, forms, gate, repository
from tritonpress_generator import recipe as recipes
from tritonpress_generator.checkpoint import load_encoder, load_tokenizer, resolve
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Infer, latency_ms
from tritonpress_generator.layouts import Parts
from tritonpress_generator.progress import Progress
from tritonpress_generator.steps.tokenizer.text_encoder import InvalidTextError, TextEncoder

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
    task, engine = recipe.task, recipe.engine
    data = task.module.load_data(recipe)

    say.stage(f"checkpoint {recipe.checkpoint.source}")
    checkpoint = resolve(recipe.checkpoint, base=recipe.path.parent)
    tokenizer = load_tokenizer(checkpoint)
    reference = load_encoder(checkpoint)
    _check_length(recipe, reference)
    query_encoder = text_encoder(recipe, tokenizer, max_bytes=task.config.max_query_bytes)
    item_encoder = text_encoder(recipe, tokenizer, max_bytes=1 << 30)

    say.stage("baseline in FP32")
    model, signature = task.module.head(reference, checkpoint, task.config)
    baseline_infer = export.torch_infer(model, signature)
    index = task.module.index(baseline_infer, item_encoder, data, task.config)
    baseline = task.module.evaluate(baseline_infer, query_encoder, data, index)
    rows = [Row("torch FP32", checkpoint.size_bytes, _latency(baseline_infer), baseline.metrics)]

    samples = _samples(recipe, query_encoder, data)
    say.stage("export to ONNX" + "".join(f", {stage.word}" for stage in recipe.graph))
    candidates = forms.compile_forms(recipe, checkpoint, baseline_infer, item_encoder, data, samples)
    say.stage(f"lengths: {', '.join(candidates)}")
    form, lengths_entry = forms.choose(recipe, candidates, tokenizer, samples)
    infer = form.infer(engine)

    say.stage(f"gate: {recipe.gate.metric}")
    fp32 = task.module.evaluate(form.fp32_infer, query_encoder, data, index)
    rows.append(Row("ONNX FP32", form.fp32_bytes, _latency(form.fp32_infer), fp32.metrics))
    served = task.module.evaluate(infer, query_encoder, data, index)
    stages = " + ".join([stage.word for stage in recipe.graph] or [engine.word])
    rows.append(Row(stages, form.model.ByteSize(), _latency(infer), served.metrics))
    verdict = gate.check(recipe.gate, baseline.metrics, served.metrics)

    say.stage(f"repository {out}")
    manifest = {
        "workload": recipe.name,
        "task": task.word,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "checkpoint": {
            "source": checkpoint.source,
            "revision": recipe.checkpoint.revision,
            "sha256": checkpoint.sha256,
            "bytes": checkpoint.size_bytes,
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
            "requests": task.module.golden_requests(data, served, count=_GOLDEN_REQUESTS),
        },
    }
    parts = Parts(
        recipe=recipe,
        lengths=form.lengths,
        tokenizer=tokenizer,
        encoding=form.encoding,
        model=form.model,
        signature=form.signature,
        write_postprocessing=lambda version_dir: task.module.write_postprocessing(version_dir, index, data),
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


def text_encoder(recipe: recipes.Recipe, tokenizer: Any, *, max_bytes: int) -> TextEncoder:
    """Returns the tokenizer with the limits of the recipe, for texts of `max_bytes` at most."""
    return TextEncoder(tokenizer, max_length=recipe.serve.max_length, max_bytes=max_bytes)


def _samples(recipe: recipes.Recipe, encoder: TextEncoder, data: Any) -> list[list[int]]:
    """Returns the token ids of texts that stand for what will be asked."""
    if recipe.serve.samples is None:
        return encoder.encode([text.encode() for text in data.samples])
    path = recipe.file(recipe.serve.samples)
    try:
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{path}: cannot be read ({exc}); correct serve.samples in the recipe") from exc
    if not texts:
        raise InputError(f"{path}: must have at least one text, got none; serve.samples has one a line")
    try:
        return encoder.encode([text.encode() for text in texts])
    except InvalidTextError as exc:
        raise InputError(f"{path}: text {exc.index + 1} {exc}") from exc


def _check_length(recipe: recipes.Recipe, encoder: Any) -> None:
    """Refuses a `max_length` beyond the model's positions, which would fail at the first long text."""
    config = encoder.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return
    # RoBERTa and its kin begin to count behind the padding token.
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    offset = config.pad_token_id + 1 if getattr(table, "padding_idx", None) is not None else 0
    if recipe.serve.max_length > positions - offset:
        raise InputError(
            f"{recipe.path}: serve.max_length must be at most {positions - offset} (the model's positions), "
            f"got {recipe.serve.max_length}; lower it"
        )


def _latency(infer: Infer) -> float:
    tokens = np.full((1, LATENCY_TOKENS), 5, np.int64)
    return latency_ms(infer, {"input_ids": tokens, "attention_mask": np.ones_like(tokens)})


def _versions() -> dict[str, str]:
    packages = ("tritonpress", "torch", "transformers", "tokenizers", "onnx", "tritonclient", "nvidia-pytriton")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
