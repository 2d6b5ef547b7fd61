"""The forms of the lengths against padding to the batch's longest, in process, at a batch of mixed lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tritonpress_generator.bench.timing import rate, spread
from tritonpress_generator.forms import Form, Rows, padding
from tritonpress_generator.infer import Infer
from tritonpress_generator.recipe import Stage
from tritonpress_generator.steps.tokenizer.text_encoder import TextEncoder
from tritonpress_generator.table import render

BATCH = 16
LONGEST = "padded to the longest"


def compare_lengths(
    forms: Mapping[str, Form],
    engine: Stage,
    tokenizer: Tokenizer,
    rows: Rows,
    *,
    name: str,
    rounds: int,
    slice_s: float,
) -> dict[str, Any]:
    """Returns and prints texts per second of each form at batches of 16 in one engine of all cores.

    Args:
        forms: By their words; `exact` among them, which is also what is padded to the longest.
        engine: The recipe's.
        tokenizer: The checkpoint's.
        rows: Token ids of the texts.
        name: Of what is compared.
        rounds: How often each runs.
        slice_s: For how long.
    """
    batches = [rows[start : start + BATCH] for start in range(0, len(rows) - BATCH + 1, BATCH)]
    encoders = {
        word: TextEncoder(Tokenizer.from_str(tokenizer.to_str()), **form.encoding) for word, form in forms.items()
    }
    engines = {id(form.model): form.workers(engine, [None])[0] for form in forms.values()}
    padded = engines[id(forms["exact"].model)]
    ways: dict[str, Callable[[Rows], object]] = {LONGEST: lambda batch: padded(encoders["exact"].tensors(batch))}
    for word, form in forms.items():
        ways[word] = _way(encoders[word], engines[id(form.model)])
    wasted = {word: padding(encoders[word], batches) for word in forms}
    widest = sum(max(map(len, batch)) * len(batch) for batch in batches)
    wasted[LONGEST] = 1 - sum(len(row) for batch in batches for row in batch) / widest
    rates: dict[str, list[float]] = {word: [] for word in ways}
    for turn in range(rounds + 1):
        for word, way in ways.items():
            # The same batches for each way, from the same place on in a round.
            at = iter(range(turn * 7, 1 << 30))
            per_s = rate(lambda way=way, at=at: way(batches[next(at) % len(batches)]), slice_s)  # type: ignore[misc]
            rates[word] += [per_s * BATCH] if turn else []
    table = [
        [word, f"{np.median(per_s):.0f}", spread(np.divide(per_s, rates[LONGEST])), f"{wasted[word]:.1%}"]
        for word, per_s in rates.items()
    ]
    tokens = np.mean([len(row) for row in rows])
    print(f"{name}, batches of {BATCH} texts of log-normal lengths (mean {tokens:.0f}, longest {max(map(len, rows))})")
    print(render(["form", "texts/s", "to padded", "padding computed"], table) + "\n", flush=True)
    return {word: {"texts_per_s": per_s, "padding": wasted[word]} for word, per_s in rates.items()}


def _way(encoder: TextEncoder, engine: Infer) -> Callable[[Rows], object]:
    return lambda batch: [engine(feed) for _, feed in encoder.executions(batch)]
