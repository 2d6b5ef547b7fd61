"""Metrics of classification. All take what is true and what was answered as booleans or probabilities a label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINS = 15


def accuracy(truth: NDArray[np.bool_], answered: NDArray[np.bool_]) -> float:
    """Returns the share of texts whose labels are all right.

    Args:
        truth: `(texts, labels)`.
        answered: `(texts, labels)`.
    """
    return float((truth == answered).all(1).mean())


def macro_f1(truth: NDArray[np.bool_], answered: NDArray[np.bool_]) -> float:
    """Returns the mean over the labels of the harmonic mean of precision and recall.

    A label that is neither true nor answered anywhere counts as 0, as in scikit-learn's `f1_score`.
    """
    both = (truth & answered).sum(0)
    total = truth.sum(0) + answered.sum(0)
    return float(np.mean(np.divide(2 * both, total, out=np.zeros(len(both)), where=total > 0)))


def matthews(truth: NDArray[np.bool_], answered: NDArray[np.bool_]) -> float:
    """Returns Matthews' correlation coefficient, for one label a text its form for several classes.

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient". The
    correlation of the indicators of all texts and labels: so it is defined for several labels a text as well.
    """

    def covariance(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
        return float(((a - a.mean(0)) * (b - b.mean(0))).sum())

    spread = covariance(truth, truth) * covariance(answered, answered)
    return covariance(truth, answered) / float(np.sqrt(spread)) if spread > 0 else 0.0


def expected_calibration_error(probability: NDArray[Any], right: NDArray[np.bool_]) -> float:
    """Returns how far probabilities are from the share that is right, weighted by how many have them, in 15 bins.

    Args:
        probability: `(answers,)`, of what was answered.
        right: `(answers,)`.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
    """
    bins = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    gaps = [
        abs(probability[bins == i].mean() - right[bins == i].mean()) * (bins == i).mean() for i in set(bins.tolist())
    ]
    return float(sum(gaps))


def best_temperature(
    logits: NDArray[np.float32], truth: NDArray[np.bool_], probabilities: Callable[[float], NDArray[np.float32]]
) -> float:
    """Returns the temperature that makes the probabilities of what is true the highest.

    The log-likelihood is concave in the inverse of the temperature: its derivative is halved to 0.

    Args:
        logits: FP32 `(texts, labels)`.
        truth: `(texts, labels)`.
        probabilities: Of all labels at a temperature, `(texts, labels)`.

    Source: Guo et al. 2017, section 4.2.
    """
    low, high = 1e-2, 1e2
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        slope = float(((truth - probabilities(middle)) * logits).sum())
        # Too high a temperature still gains by a lower one: the derivative by its inverse is positive.
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(np.sqrt(low * high))
