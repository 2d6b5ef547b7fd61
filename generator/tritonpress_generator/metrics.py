"""Ranking metrics of each query. Gains are the grades themselves, as in trec_eval's `ndcg_cut`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def recall_at_k(
    ranked: Sequence[Sequence[str]], relevant: Sequence[Mapping[str, float]], k: int
) -> NDArray[np.float64]:
    """Returns the share of each query's relevant items that are among its first `k`, `(queries,)`."""
    return np.array(
        [len(set(row[:k]) & set(grades)) / len(grades) for row, grades in zip(ranked, relevant, strict=True)]
    )


def ndcg_at_k(ranked: Sequence[Sequence[str]], relevant: Sequence[Mapping[str, float]], k: int) -> NDArray[np.float64]:
    """Returns the normalised discounted cumulative gain of each query's first `k`, `(queries,)`.

    Source: Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques".
    """
    values = []
    for row, grades in zip(ranked, relevant, strict=True):
        gain = _discounted([grades.get(item, 0.0) for item in row[:k]])
        values.append(gain / _discounted(sorted(grades.values(), reverse=True)[:k]))
    return np.array(values)


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(position + 2) for position, gain in enumerate(gains))
