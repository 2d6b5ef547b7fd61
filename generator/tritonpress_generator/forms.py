"""The model in each form that its sequences may have."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
from tokenizers import Tokenizer

from tritonpress_generator import export, workplace
from tritonpress_generator.answering import alone
from tritonpress_generator.checkpoint import Checkpoint
from tritonpress_generator.engines import Asked
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.exchange import exchange_attention
from tritonpress_generator.graph import GraphMaterial
from tritonpress_generator.infer import Infer
from tritonpress_generator.kept import NOTHING, Kept
from tritonpress_generator.pretrained import encoder_of
from tritonpress_generator.recipe import Recipe, Stage
from tritonpress_generator.signature import Signature
from tritonpress_generator.steps.tokenizer.sequences import Sequences
from tritonpress_generator.steps.tokenizer.served import pad_id


@dataclass(frozen=True)
class Source:
    """What the forms are made of, and measured with."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    model: Any
    """Of `transformers`, after the passes."""
    infer: Infer
    """That in torch, FP32, which every form is held to."""
    calibration: Sequences
    """Of texts of the task."""
    calibrated_on: dict[str, Any]
    """Which texts these are, for the manifest."""
    samples: Sequences
    """Of what will be asked."""
    score: Callable[[Infer], float]
    """The task's metric on held-out examples that are not the gate's."""
    held_out: Callable[[], str]
    """A hash of these examples, and of what they are asked with."""
    kept: Kept = NOTHING
    """What earlier builds have computed."""


@dataclass(frozen=True)
class Form:
    """The model in one form of its sequences, after the graph passes."""

    lengths: Stage
    asked: Asked
    encoding: dict[str, Any]
    """What the tokenizer must know, for an execution of the engine (`steps/tokenizer/served.py`)."""
    parity: export.Parity
    fp32_infer: Infer
    """The export before the graph passes; takes a padded batch."""
    fp32: onnx.ModelProto
    """The export before the graph passes."""
    model: onnx.ModelProto
    """The export after them."""
    report: dict[str, Any] = field(default_factory=dict)
    """What the graph passes have done, by their words."""

    @property
    def signature(self) -> Signature:
        """What the model reads and gives."""
        return self.asked.signature

    def rungs(self, engine: Stage) -> dict[str, onnx.ModelProto]:
        """Returns the graphs that the engine may serve, the most accurate first."""
        rungs: dict[str, onnx.ModelProto] = engine.module.rungs(self.fp32, self.model, engine.config)
        return rungs

    def loaded(self, engine: Stage, folder: Path) -> Infer:
        """Returns the engine that was built in `folder`, alone in this process; takes a padded batch."""
        infer: Infer = self.lengths.module.as_padded(engine.module.load(folder, engine.config), self.signature)
        return infer

    def infer(self, engine: Stage) -> Infer:
        """Returns the engine of the lowest rung, alone in this process; takes a padded batch."""
        infer: Infer = self.lengths.module.as_padded(self.workers(engine, [None])[0], self.signature)
        return infer

    def workers(self, engine: Stage, threads: Sequence[int | None]) -> list[Infer]:
        """Returns an engine that takes the form's inputs for each of `threads`, of which each may use so many."""
        with workplace.scratch() as folder:
            engine.module.build(self.rungs(engine), folder, engine.config, self.asked)
            return [engine.module.load(folder, engine.config, threads=count) for count in threads]


def compile_forms(recipe: Recipe, source: Source) -> dict[str, Form]:
    """Returns the forms that the recipe leaves to choose from, by their words.

    Raises:
        InputError: None of them can be made of this model; says why.
    """
    forms: dict[str, Form] = {}
    problems: list[InputError] = []
    for lengths in recipe.lengths:
        try:
            forms[lengths.word] = _compile(recipe, lengths, source, forms)
        except InputError as exc:
            problems.append(exc)
    if not forms:
        raise problems[0]
    return forms


def _compile(recipe: Recipe, lengths: Stage, source: Source, others: Mapping[str, Form]) -> Form:
    """Returns one form; what it shares with one of `others` is not made again."""
    task = recipe.task
    head, signature = _head(recipe, lengths, source)
    of_samples = [len(row) for row in source.samples.ids]
    own = lengths.module.tokenizer_settings(
        lengths.config, recipe.serve, signature, of_samples, encoder_of(source.model)
    )
    integers = recipe.engine.module.INTEGERS
    encoding = {
        "kind": task.module.ENCODER,
        "encoder": task.module.encoder_settings(recipe, signature),
        "batching": {
            "pad_id": pad_id(source.tokenizer),
            "max_sequences": recipe.serve.max_batch_size,
            "integers": integers,
            **own,
        },
        "of_tokens": signature.of_tokens,
    }
    asked = Asked(
        workload=recipe.name,
        signature=signature,
        form=lengths.word,
        native=recipe.layout.module.NATIVE,
        max_batch_size=recipe.serve.max_batch_size,
        max_length=recipe.serve.max_length,
        borders=tuple(own.get("borders", ())),
        lengths=tuple(of_samples),
    )
    for other in others.values():
        if other.lengths.module.export is lengths.module.export:
            return replace(other, lengths=lengths, asked=asked, encoding=encoding)
    fp32 = graph = lengths.module.export(head, signature)
    fp32_infer = lengths.module.as_padded(session_infer(fp32.SerializeToString()), signature)
    parity_feeds = export.parity_feeds(source.calibration, recipe.serve.max_length)
    parity = export.check_parity(source.infer, fp32_infer, parity_feeds, signature)
    feeds = [lengths.module.native(feed, signature) for _, feed in alone(source.calibration)]
    form = Form(lengths, asked, encoding, parity, fp32_infer, fp32, fp32)

    def score(candidate: onnx.ModelProto) -> float:
        return source.score(replace(form, model=plain(candidate)).infer(recipe.engine))

    for stage in recipe.graph:
        note = partial(form.report.__setitem__, stage.word)
        noted = GraphMaterial(source.kept, score, note, source.held_out)
        graph = stage.module.apply(graph, stage.config, feeds, noted)
    return replace(form, fp32=plain(fp32), model=plain(graph))


def _head(recipe: Recipe, lengths: Stage, source: Source) -> tuple[Any, Signature]:
    """Returns the task's model as a form exports it, and what it reads and gives."""
    model = copy.deepcopy(source.model)
    exchange_attention(encoder_of(model), lengths.module.ATTENTION)
    head, signature = recipe.task.module.head(model, source.checkpoint, recipe.task.config)
    return head, signature


def exported(recipe: Recipe, lengths: Stage, source: Source) -> onnx.ModelProto:
    """Returns the FP32 export of one form, as graph passes take it."""
    graph: onnx.ModelProto = lengths.module.export(*_head(recipe, lengths, source))
    return graph


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with its functions as plain operators."""
    # What no pass has taken becomes plain operators: not every runtime knows functions of the model's own (OpenVINO).
    return onnx.inliner.inline_local_functions(model)
