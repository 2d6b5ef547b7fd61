"""The model in each form that its sequences may have, and which form is the fastest on this machine."""

from __future__ import annotations

import copy
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from tokenizers import Tokenizer

from tritonpress_generator import export
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
from tritonpress_generator.steps.tokenizer.sequences import Batching, Sequences
from tritonpress_generator.steps.tokenizer.served import pad_id

_ROUNDS = 7
_SLICE_S = 0.5


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
        with tempfile.TemporaryDirectory(prefix="tritonpress-") as folder:
            engine.module.build(self.rungs(engine), Path(folder), engine.config, self.asked)
            return [engine.module.load(Path(folder), engine.config, threads=count) for count in threads]


@dataclass(frozen=True)
class Candidate:
    """How sequences become executions, and who runs them."""

    batching: Batching
    workers: Sequence[Infer]
    """One an instance."""


@dataclass(frozen=True)
class Measured:
    """What a form was measured to do in process, with as many texts at hand as an execution may have."""

    texts_per_s: float
    """The median of the rounds."""
    low: float
    """Of the middle 80 % of the rounds; likewise `high`."""
    high: float
    padding: float
    """The share of padding among the tokens that are computed."""


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


def choose(recipe: Recipe, forms: Mapping[str, Form], source: Source) -> tuple[Form, dict[str, Any]]:
    """Returns the fastest form, and what the manifest says of the choice.

    Args:
        recipe: The recipe.
        forms: By their words, the best first; where there is one, or the engine does not run here, nothing is measured.
        source: Has the samples.
    """
    batches = batches_of(source.samples, recipe.serve.max_batch_size)
    batchings = {word: Batching(**form.encoding["batching"]) for word, form in forms.items()}
    measured: dict[str, Measured] = {}
    if len(forms) > 1 and recipe.engine.module.runs_here():
        threads = recipe.engine.module.threads(recipe.engine.config)
        workers: dict[int, list[Infer]] = {}
        for form in forms.values():
            if id(form.model) not in workers:
                workers[id(form.model)] = form.workers(recipe.engine, threads)
        candidates = {word: Candidate(batchings[word], workers[id(form.model)]) for word, form in forms.items()}
        measured = measure(candidates, batches)
    chosen = max(forms, key=lambda word: measured[word].texts_per_s if measured else 0.0)
    entry = {
        "form": chosen,
        "samples": len(source.samples),
        "mean_tokens": float(np.mean([len(row) for row in source.samples.ids])),
        "padding": padding(batchings[chosen], batches),
        "measured": {word: asdict(figures) for word, figures in measured.items()},
    }
    return forms[chosen], entry


def measure(
    candidates: Mapping[str, Candidate], batches: Sequence[Sequences], *, rounds: int = _ROUNDS
) -> dict[str, Measured]:
    """Returns the figures of each candidate; they run in turn, so that what disturbs the machine disturbs all alike.

    Args:
        candidates: By name.
        batches: The texts that are at hand together.
        rounds: How often each runs.
    """
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for candidate in candidates.values():
        rate(candidate, batches, _SLICE_S / 2)
    for _ in range(rounds):
        for name, candidate in candidates.items():
            rates[name].append(rate(candidate, batches, _SLICE_S))
    spreads = {name: np.percentile(values, [10, 50, 90]) for name, values in rates.items()}
    return {
        name: Measured(float(median), float(low), float(high), padding(candidates[name].batching, batches))
        for name, (low, median, high) in spreads.items()
    }


def padding(batching: Batching, batches: Sequence[Sequences]) -> float:
    """Returns the share of padding among the tokens that are computed for `batches`."""
    computed = sum(feed["input_ids"].size for batch in batches for _, feed in batching.executions(batch))
    return 1 - sum(len(row) for batch in batches for row in batch.ids) / computed


def batches_of(sequences: Sequences, size: int) -> list[Sequences]:
    """Returns `sequences` in batches, in an order of their own, since they may be sorted."""
    order = np.random.default_rng(0).permutation(len(sequences)).tolist()
    return [sequences.chosen(order[start : start + size]) for start in range(0, len(order), size)]


def rate(candidate: Candidate, batches: Sequence[Sequences], seconds: float) -> float:
    """Returns texts per second; each worker takes the next batch of its own as soon as it is free, one at least."""
    counts = [0] * len(candidate.workers)
    start = time.perf_counter()

    def work(number: int) -> None:
        turn = number
        while not counts[number] or time.perf_counter() - start < seconds:
            batch = batches[turn % len(batches)]
            for _, feed in candidate.batching.executions(batch):
                candidate.workers[number](feed)
            counts[number] += len(batch)
            turn += len(counts)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)
