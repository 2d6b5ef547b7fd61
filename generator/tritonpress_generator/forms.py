"""The model in each form that its sequences may have, and which form is the fastest on this machine."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from tokenizers import Tokenizer

from tritonpress_generator import export
from tritonpress_generator.checkpoint import Checkpoint, load_encoder
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Infer
from tritonpress_generator.recipe import Recipe, Stage
from tritonpress_generator.signature import INPUTS, Signature
from tritonpress_generator.steps.tokenizer.text_encoder import TextEncoder

_PARITY_TEXTS = 12
_ROUNDS = 7
_SLICE_S = 0.5

Rows = Sequence[Sequence[int]]
"""Token ids of texts."""


@dataclass(frozen=True)
class Form:
    """The model in one form of its sequences, after the graph passes."""

    lengths: Stage
    signature: Signature
    encoding: dict[str, Any]
    """The text encoder's settings, for an execution of the engine."""
    parity: export.Parity
    fp32_infer: Infer
    """The export before the graph passes; takes a padded batch."""
    fp32_bytes: int
    model: onnx.ModelProto

    def infer(self, engine: Stage) -> Infer:
        """Returns the engine, alone in this process; takes a padded batch."""
        infer: Infer = self.lengths.module.as_padded(self.workers(engine, [None])[0], self.signature)
        return infer

    def workers(self, engine: Stage, threads: Sequence[int | None]) -> list[Infer]:
        """Returns an engine that takes the form's inputs for each of `threads`, of which each may use so many."""
        with tempfile.TemporaryDirectory(prefix="tritonpress-") as folder:
            engine.module.build(self.model, Path(folder))
            return [engine.module.load(Path(folder), engine.config, threads=count) for count in threads]


@dataclass(frozen=True)
class Candidate:
    """How texts become executions, and who runs them."""

    encoder: TextEncoder
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


def compile_forms(
    recipe: Recipe, checkpoint: Checkpoint, baseline: Infer, encoder: TextEncoder, data: Any, samples: Rows
) -> dict[str, Form]:
    """Returns the forms that the recipe leaves to choose from, by their words.

    Args:
        recipe: The recipe.
        checkpoint: The model's.
        baseline: The checkpoint in FP32, which every form is held to where no pass changes the model.
        encoder: For the task's texts.
        data: The task's.
        samples: What will be asked.

    Raises:
        InputError: None of them can be made of this model; says why.
    """
    forms: dict[str, Form] = {}
    problems: list[InputError] = []
    for lengths in recipe.lengths:
        try:
            forms[lengths.word] = _compile(
                recipe,
                lengths,
                checkpoint=checkpoint,
                baseline=baseline,
                encoder=encoder,
                data=data,
                samples=samples,
                others=forms,
            )
        except InputError as exc:
            problems.append(exc)
    if not forms:
        raise problems[0]
    return forms


def _compile(
    recipe: Recipe,
    lengths: Stage,
    *,
    checkpoint: Checkpoint,
    baseline: Infer,
    encoder: TextEncoder,
    data: Any,
    samples: Rows,
    others: Mapping[str, Form],
) -> Form:
    """Returns one form; what it shares with one of `others` is not made again."""
    task = recipe.task
    model = load_encoder(checkpoint, attention=lengths.module.ATTENTION)
    for stage in recipe.passes:
        model = stage.module.apply(model, stage.config)
    head, signature = task.module.head(model, checkpoint, task.config)
    encoding = {
        "max_length": recipe.serve.max_length,
        "max_bytes": task.config.max_query_bytes,
        "too_long": recipe.serve.too_long,
        "max_sequences": recipe.serve.max_batch_size,
        **lengths.module.tokenizer_settings(
            lengths.config, recipe.serve, signature, [len(row) for row in samples], model
        ),
    }
    for other in others.values():
        if other.lengths.module.export is lengths.module.export:
            return replace(other, lengths=lengths, encoding=encoding)
    # Before the export, which may change the model.
    reference = export.torch_infer(head, signature) if recipe.passes else baseline
    graph = lengths.module.export(head, signature)
    serialized = graph.SerializeToString()
    fp32_infer = lengths.module.as_padded(session_infer(serialized), signature)
    parity = export.check_parity(
        reference, fp32_infer, _parity_feeds(encoder, data.texts, recipe.serve.max_length), signature
    )
    texts = data.texts[:: max(1, len(data.texts) // 512)]
    feeds = [lengths.module.native(feed, signature) for feed in task.module.feeds(encoder, texts)]
    for stage in recipe.graph:
        graph = stage.module.apply(graph, stage.config, feeds)
    # What no pass has taken becomes plain operators: not every runtime knows functions of the model's own (OpenVINO).
    plain = onnx.inliner.inline_local_functions(graph)
    return Form(lengths, signature, encoding, parity, fp32_infer, len(serialized), plain)


def choose(
    recipe: Recipe, forms: Mapping[str, Form], tokenizer: Tokenizer, samples: Rows
) -> tuple[Form, dict[str, Any]]:
    """Returns the fastest form, and what the manifest says of the choice.

    Args:
        recipe: The recipe.
        forms: By their words; where there is one, nothing is measured.
        tokenizer: The checkpoint's.
        samples: What will be asked.
    """
    batches = _batches(samples, recipe.serve.max_batch_size)
    encoders = {
        # A copy each, since the encoder sets the tokenizer's truncation.
        word: TextEncoder(Tokenizer.from_str(tokenizer.to_str()), **form.encoding)
        for word, form in forms.items()
    }
    measured: dict[str, Measured] = {}
    if len(forms) > 1:
        threads = recipe.engine.module.threads(recipe.engine.config)
        workers: dict[int, list[Infer]] = {}
        for form in forms.values():
            if id(form.model) not in workers:
                workers[id(form.model)] = form.workers(recipe.engine, threads)
        candidates = {word: Candidate(encoders[word], workers[id(form.model)]) for word, form in forms.items()}
        measured = measure(candidates, batches)
    chosen = max(forms, key=lambda word: measured[word].texts_per_s if measured else 0.0)
    entry = {
        "form": chosen,
        "samples": len(samples),
        "mean_tokens": float(np.mean([len(row) for row in samples])),
        "padding": padding(encoders[chosen], batches),
        "measured": {word: asdict(figures) for word, figures in measured.items()},
    }
    return forms[chosen], entry


def measure(
    candidates: Mapping[str, Candidate], batches: Sequence[Rows], *, rounds: int = _ROUNDS
) -> dict[str, Measured]:
    """Returns the figures of each candidate; they run in turn, so that what disturbs the machine disturbs all alike.

    Args:
        candidates: By name.
        batches: The texts that are at hand together.
        rounds: How often each runs.
    """
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for candidate in candidates.values():
        _rate(candidate, batches, _SLICE_S / 2)
    for _ in range(rounds):
        for name, candidate in candidates.items():
            rates[name].append(_rate(candidate, batches, _SLICE_S))
    spreads = {name: np.percentile(values, [10, 50, 90]) for name, values in rates.items()}
    return {
        name: Measured(float(median), float(low), float(high), padding(candidates[name].encoder, batches))
        for name, (low, median, high) in spreads.items()
    }


def padding(encoder: TextEncoder, batches: Sequence[Rows]) -> float:
    """Returns the share of padding among the tokens that are computed for `batches`."""
    computed = sum(feed["input_ids"].size for batch in batches for _, feed in encoder.executions(batch))
    return 1 - sum(len(row) for batch in batches for row in batch) / computed


def _batches(rows: Rows, size: int) -> list[Rows]:
    """Returns `rows` in batches, in an order of their own, since they may be sorted."""
    order = np.random.default_rng(0).permutation(len(rows))
    return [[rows[i] for i in order[start : start + size]] for start in range(0, len(rows), size)]


def _rate(candidate: Candidate, batches: Sequence[Rows], seconds: float) -> float:
    """Returns texts per second; each worker takes the next batch of its own as soon as it is free."""
    counts = [0] * len(candidate.workers)
    start = time.perf_counter()

    def work(number: int) -> None:
        turn = number
        while time.perf_counter() - start < seconds:
            batch = batches[turn % len(batches)]
            for _, feed in candidate.encoder.executions(batch):
                candidate.workers[number](feed)
            counts[number] += len(batch)
            turn += len(counts)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def _parity_feeds(encoder: TextEncoder, texts: list[str], max_length: int) -> list[dict[str, Any]]:
    """Returns real token ids at several lengths: single texts, the longest possible one, and a padded batch."""
    chosen = texts[:: max(1, len(texts) // _PARITY_TEXTS)][:_PARITY_TEXTS]
    rows = encoder.encode([text.encode() for text in chosen])
    long = encoder.encode([" ".join(texts * (1 + max_length // len(texts))).encode()])
    batches = [[row] for row in rows[:4]] + [[row[: 2 + i]] for i, row in enumerate(rows[4:6])] + [long, rows]
    return [dict(zip(INPUTS, encoder.pad(batch), strict=True)) for batch in batches]
