"""Ranking metrics, each the mean over queries. Gains are the grades themselves, as in trec_eval's `ndcg_cut`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def recall_at_k(ranked: Sequence[Sequence[str]], relevant: Sequence[Mapping[str, float]], k: int) -> float:
    """Returns the mean share of a query's relevant items that are among its first `k`."""
    shares = [len(set(row[:k]) & set(grades)) / len(grades) for row, grades in zip(ranked, relevant, strict=True)]
    return sum(shares) / len(shares)


def ndcg_at_k(ranked: Sequence[Sequence[str]], relevant: Sequence[Mapping[str, float]], k: int) -> float:
    """Returns the mean normalised discounted cumulative gain of the first `k`.

    Source: Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques".
    """
    values = []
    for row, grades in zip(ranked, relevant, strict=True):
        gain = _discounted([grades.get(item, 0.0) for item in row[:k]])
        values.append(gain / _discounted(sorted(grades.values(), reverse=True)[:k]))
    return sum(values) / len(values)


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(position + 2) for position, gain in enumerate(gains))
