"""Scores a recipe's model, or a live endpoint that serves it, on labelled data: one definition, whatever answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm
from tritonpress_client import Connection

from tritonpress_generator import forms
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import Answers, Texts, columns
from tritonpress_generator.errors import InputError
from tritonpress_generator.progress import Progress
from tritonpress_generator.workload import Workload

IN_PROCESS = ("torch", "onnx", "engine")
_TIMEOUT_S = 60.0


def evaluate(recipe_path: Path, target: str, *, dataset: Path | None = None) -> dict[str, float]:
    """Returns the task's metrics of what answers.

    Args:
        recipe_path: The recipe.
        target: `torch` (the checkpoint in FP32), `onnx` (its export), `engine` (after the graph passes, in the recipe's
            engine), or HOST:PORT of a Triton that serves the recipe's workload.
        dataset: Labelled data of the task; default: the gate's.

    Raises:
        InputError: The recipe, the checkpoint or the data is at fault.
        TritonpressError: The endpoint is not there, or refuses a request.
    """
    recipe = recipes.load(recipe_path)
    if target not in IN_PROCESS and ":" not in target:
        raise InputError(f"--target: must be {', '.join(IN_PROCESS)} or HOST:PORT of a server, got {target!r}")
    if dataset is not None:
        recipe = replace(recipe, gate=recipe.gate.model_copy(update={"dataset": str(dataset.resolve())}))
    say = Progress()
    if target not in IN_PROCESS:
        data = recipe.task.module.load_data(recipe)
        say.stage(f"{recipe.name} at {target}")
        with Connection(target, timeout_s=_TIMEOUT_S) as connection:
            answers = ask(connection, recipe.name, data.inputs, batch=recipe.serve.max_batch_size)
        metrics: dict[str, float] = recipe.task.module.metrics(data, answers)
        say.done()
        return metrics
    workload = Workload.load(recipe, say)
    infer = workload.baseline
    if target != "torch":
        say.stage("export to ONNX" + "".join(f", {stage.word}" for stage in recipe.graph))
        # All forms of the lengths answer alike; this one is there for every encoder.
        exact = replace(recipe, lengths=recipes.lengths_of("exact", recipe.engine, path=recipe_path))
        form = forms.compile_forms(exact, workload.source())["exact"]
        infer = form.fp32_infer if target == "onnx" else form.infer(recipe.engine)
    say.stage(f"answers of {target}")
    metrics = workload.metrics(workload.answers(infer))
    say.done()
    return metrics


def ask(connection: Connection, model: str, texts: Texts, *, batch: int) -> Answers:
    """Returns what `model` answers to `texts`, asked `batch` at a time.

    Raises:
        TritonpressError: The server is not there, or refuses a request.
    """
    count = len(next(iter(texts.values())))
    parts: list[Answers] = []
    for start in tqdm(range(0, count, batch), desc="asking", unit="request", leave=False, disable=None):
        part = columns(texts, slice(start, start + batch))
        inputs = {name: np.array(column, np.object_)[:, None] for name, column in part.items()}
        parts.append(connection.infer(model, inputs))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
