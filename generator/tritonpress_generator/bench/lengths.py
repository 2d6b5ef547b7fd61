"""The forms of the lengths against padding to the batch's longest, in process, at a batch of mixed lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tritonpress_generator.bench.timing import rate, spread
from tritonpress_generator.bench.variants import Bench
from tritonpress_generator.form_choice import batches_of, padding
from tritonpress_generator.infer import Infer
from tritonpress_generator.steps.tokenizer.sequences import Batching, Sequences
from tritonpress_generator.table import render

BATCH = 16
LONGEST = "padded to the longest"


def section(bench: Bench) -> Any:
    """Returns and prints the rates of ragged, buckets and exact lengths, against padding, in each precision."""
    return {precision: _compare(bench, precision) for precision in bench.graphs}


def _compare(bench: Bench, precision: str) -> dict[str, Any]:
    """Returns and prints sequences per second of each form at batches of 16 in one engine of all cores."""
    sequences = bench.source.samples
    size = min(BATCH, len(sequences))
    batches = [batch for batch in batches_of(sequences, size) if len(batch) == size]
    forms = bench.forms(precision)
    batchings = {word: Batching(**form.encoding["batching"]) for word, form in forms.items()}
    engines = {id(form.model): form.workers(bench.recipe.engine, [None])[0] for form in forms.values()}
    padded = engines[id(forms["exact"].model)]
    ways: dict[str, Callable[[Sequences], object]] = {LONGEST: lambda batch: padded(batchings["exact"].pad(batch))}
    ways |= {word: _way(batchings[word], engines[id(form.model)]) for word, form in forms.items()}
    widest = sum(max(map(len, batch.ids)) * len(batch) for batch in batches)
    wasted = {LONGEST: 1 - sum(len(row) for batch in batches for row in batch.ids) / widest}
    wasted |= {word: padding(batching, batches) for word, batching in batchings.items()}
    rates: dict[str, list[float]] = {word: [] for word in ways}
    for turn in range(bench.rounds + 1):
        for word, way in ways.items():
            # The same batches for each way, from the same place on in a round.
            at = iter(range(turn * 7, 1 << 30))
            per_s = rate(lambda way=way, at=at: way(batches[next(at) % len(batches)]), bench.slice_s)  # type: ignore[misc]
            rates[word] += [per_s * size] if turn else []
    table = [
        [word, f"{np.median(per_s):.0f}", spread(np.divide(per_s, rates[LONGEST])), f"{wasted[word]:.1%}"]
        for word, per_s in rates.items()
    ]
    tokens = [len(row) for row in sequences.ids]
    print(f"{precision.upper()}, batches of {size} mixed lengths (mean {np.mean(tokens):.0f}, longest {max(tokens)})")
    print(render(["form", "sequences/s", "to padded", "padding computed"], table) + "\n", flush=True)
    return {word: {"per_s": per_s, "padding": wasted[word]} for word, per_s in rates.items()}


def _way(batching: Batching, engine: Infer) -> Callable[[Sequences], object]:
    return lambda batch: [engine(feed) for _, feed in batching.executions(batch)]
