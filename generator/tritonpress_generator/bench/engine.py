"""The engine against torch and plain ONNX Runtime, at fixed shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tritonpress_generator.bench.timing import rate, spread
from tritonpress_generator.infer import Infer
from tritonpress_generator.table import render

SHAPES = ((1, 32), (8, 128), (1, 384))
_VOCABULARY = (1000, 20000)


def compare_engines(engines: Mapping[str, Infer], rounds: int, slice_s: float) -> list[dict[str, Any]]:
    """Returns and prints sequences per second of each engine, and the ratio to the first."""
    header = ["sequences/s", *(f"{batch}×{length}" for batch, length in SHAPES)]
    rates: dict[tuple[str, tuple[int, int]], list[float]] = {}
    generator = np.random.default_rng(0)
    for shape in SHAPES:
        ids = generator.integers(*_VOCABULARY, shape)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for infer in engines.values():
            rate(lambda infer=infer, feed=feed: infer(feed), slice_s)  # type: ignore[misc]
        for _ in range(rounds):
            for name, infer in engines.items():
                per_s = rate(lambda infer=infer, feed=feed: infer(feed), slice_s)  # type: ignore[misc]
                rates.setdefault((name, shape), []).append(per_s * shape[0])
    first = next(iter(engines))
    rows, figures = [], []
    for name in engines:
        cells = [name]
        for shape in SHAPES:
            ratio = np.divide(rates[name, shape], rates[first, shape])
            cells.append(f"{np.median(rates[name, shape]):.0f}  {spread(ratio)}")
            figures.append({"engine": name, "shape": shape, "per_s": rates[name, shape], "ratio": ratio.tolist()})
        rows.append(cells)
    print(render(header, rows) + "\n", flush=True)
    return figures
