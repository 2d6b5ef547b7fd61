"""Which of many samples are taken where fewer do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_Sample = TypeVar("_Sample")


def spread(samples: Sequence[_Sample], most: int) -> Sequence[_Sample]:
    """Returns `most` of the samples, evenly spread over all of them, or all where there are no more.

    Those of a calibration come by their lengths, so that the first ones would be of few: none of the longest, whose
    values are others.
    """
    return [samples[i * len(samples) // most] for i in range(most)] if len(samples) > most else samples
