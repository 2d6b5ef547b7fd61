"""Which form of a model is the fastest on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tritonpress_generator.forms import Form, Source
from tritonpress_generator.infer import Infer
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.steps.tokenizer.sequences import Batching, Sequences

_ROUNDS = 7
_SLICE_S = 0.5


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
