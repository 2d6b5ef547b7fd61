"""The engine against torch and plain ONNX Runtime, at fixed shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tritonpress_generator.bench.timing import rate, spread
from tritonpress_generator.bench.variants import Bench
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.positions import most_tokens
from tritonpress_generator.pretrained import encoder_of
from tritonpress_generator.signature import INPUTS, SEGMENTS
from tritonpress_generator.steps.tokenizer.sequences import Sequences
from tritonpress_generator.table import render

SHAPES = ((1, 32), (8, 128), (1, 384))
_FIRST_SEGMENT_TOKENS = 14
"""A short question, with its special tokens."""


def section(bench: Bench) -> Any:
    """Returns and prints sequences per second of the padded form, and of what it is compared with."""
    engines, shapes = compared(bench), shapes_of(bench)
    # Ids of a cropped vocabulary are ids of the whole one.
    rates = sequence_rates(engines, feeds(bench.source.calibration, shapes), bench.rounds, bench.slice_s)
    header = ["sequences/s", *(f"{batch}×{length}" for batch, length in shapes)]
    rows, figures = [], []
    first = rates[next(iter(engines))]
    for name, of_shape in rates.items():
        ratios = [np.divide(own, torch) for own, torch in zip(of_shape, first, strict=True)]
        cells = [f"{np.median(own):.0f}  {spread(ratio)}" for own, ratio in zip(of_shape, ratios, strict=True)]
        rows.append([name, *cells])
        for shape, own, ratio in zip(shapes, of_shape, ratios, strict=True):
            figures.append({"engine": name, "shape": shape, "per_s": own, "ratio": ratio.tolist()})
    print(render(header, rows) + "\n", flush=True)
    return figures


def shapes_of(bench: Bench) -> list[tuple[int, int]]:
    """Returns those of `SHAPES` that the served model has positions for."""
    most = most_tokens(encoder_of(bench.source.model))
    return [shape for shape in SHAPES if most is None or shape[1] <= most]


def compared(bench: Bench) -> dict[str, Infer]:
    """Returns the engine in the padded form, and what it is compared with, first: torch and plain ONNX Runtime.

    Where the recipe has passes, both of these run the model as it was; so does the served engine without passes.
    """
    form, engine = bench.forms(bench.own)["exact"], bench.recipe.engine
    engines = {"torch eager FP32": bench.uncompressed.baseline}
    if bench.recipe.passes:
        plain = bench.uncompressed_forms()["exact"]
        engines |= {"ONNX Runtime FP32": plain.fp32_infer, "served engine without passes": plain.infer(engine)}
    else:
        engines |= {"ONNX Runtime FP32": form.fp32_infer}
    return engines | {"served engine": form.infer(engine)}


def feeds(sequences: Sequences, shapes: Sequence[tuple[int, int]]) -> list[dict[str, Array]]:
    """Returns a full batch of each shape: tokens of `sequences` at random, and segments if those have any."""
    generator = np.random.default_rng(0)
    known = np.unique(np.concatenate([np.array(row, np.int64) for row in sequences.ids]))
    batches = []
    for shape in shapes:
        ids = generator.choice(known, shape)
        feed = dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True))
        if sequences.segments:
            feed[SEGMENTS] = np.ones_like(ids)
            feed[SEGMENTS][:, :_FIRST_SEGMENT_TOKENS] = 0
        batches.append(feed)
    return batches


def sequence_rates(
    engines: Mapping[str, Infer], feeds: list[dict[str, Array]], rounds: int, slice_s: float
) -> dict[str, list[list[float]]]:
    """Returns sequences per second of each engine, of each of `feeds`, round by round; the engines run in turn."""
    rates: dict[str, list[list[float]]] = {name: [[] for _ in feeds] for name in engines}
    for number, feed in enumerate(feeds):
        for turn in range(rounds + 1):
            for name, infer in engines.items():
                per_s = rate(lambda infer=infer, feed=feed: infer(feed), slice_s)  # type: ignore[misc]
                rates[name][number] += [per_s * len(feed["input_ids"])] if turn else []
    return rates
