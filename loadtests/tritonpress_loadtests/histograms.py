"""HdrHistograms of microseconds: what workers record, merge without loss and send to one another.

All have one configuration (1 µs to an hour, three significant digits), so that adding two gives exactly what one would
have recorded; a value is known to a thousandth of itself, below 2 ms to a microsecond.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

HIGHEST_US = 3_600_000_000
_DIGITS = 3

Counts = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]
"""Latencies in µs, ascending, and how often each was recorded."""


def new() -> HdrHistogram:
    """Returns an empty histogram."""
    return HdrHistogram(1, HIGHEST_US, _DIGITS)


def encoded(histogram: HdrHistogram) -> str:
    """Returns the histogram in HdrHistogram's V2 format, compressed, in base64."""
    return histogram.encode().decode("ascii")  # type: ignore[no-any-return]


def merged(texts: Iterable[str]) -> HdrHistogram:
    """Returns the sum of encoded histograms."""
    total = new()
    for text in texts:
        total.add(HdrHistogram.decode(text))
    return total


@cache
def _bucket_middles() -> npt.NDArray[np.float64]:
    """Returns what a count at each place of a histogram stands for."""
    empty = new()
    lowest = np.array([empty.get_value_from_index(place) for place in range(empty.counts_len)], np.float64)
    # A bucket holds whole microseconds: one of width 1 stands for itself.
    widths = np.diff(lowest, append=lowest[-1])
    return lowest + np.maximum(widths - 1, 0) / 2


def counts(histogram: HdrHistogram) -> Counts:
    """Returns the recorded latencies (the middle of each bucket) and their counts."""
    dense = np.ctypeslib.as_array(histogram.counts).astype(np.int64)
    (places,) = np.nonzero(dense)
    return _bucket_middles()[places], dense[places]


def quantiles(recorded: Counts, shares: Sequence[float]) -> npt.NDArray[np.float64]:
    """Returns the smallest latency that at least each share of the requests does not exceed, in µs."""
    values, times = recorded
    cumulative = np.cumsum(times)
    ranks = np.maximum(1, np.ceil(np.asarray(shares) * cumulative[-1] - 1e-9))
    found: npt.NDArray[np.float64] = values[np.searchsorted(cumulative, ranks)]
    return found


def mean(recorded: Counts) -> float:
    """Returns the mean latency in µs."""
    values, times = recorded
    return float(values @ times / times.sum())
