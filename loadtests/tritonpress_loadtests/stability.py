"""Whether a stage's figures stood still, from when on they count, and how certain its percentiles are."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tritonpress_loadtests import histograms
from tritonpress_loadtests.histograms import Counts
from tritonpress_loadtests.measured import Measured

TOLERANCE = 0.10
_LEAST_WINDOWS = 6
_MOST_CUT = 0.25
_RESAMPLES = 400
_BEYOND = 1.4826 * 3  # three standard deviations, by the median of absolute deviations


def warm_up_windows(measured: Measured) -> int:
    """Returns how many windows at the start differ from the stage's second half: the warm-up, which is cut.

    A window differs if its median latency is further from the second half's median than a tenth, and than three
    standard deviations of that half. Only an unbroken run from the very start is cut, and no more than a quarter of the
    stage, so that a server that stumbles later is never cut away.
    """
    count = measured.whole_windows
    if count < _LEAST_WINDOWS:
        return 0
    medians = np.array([_median_us(measured.counts(first=number, last=number + 1)) for number in range(count)])
    half = medians[count // 2 :]
    if np.isnan(half).all():
        return 0
    settled = np.nanmedian(half)
    allowed = max(TOLERANCE * settled, _BEYOND * np.nanmedian(np.abs(half - settled)))
    differs = ~(np.abs(medians - settled) <= allowed)
    first = int(np.argmin(differs)) if not differs.all() else count
    return min(first, int(_MOST_CUT * count))


def verdict(measured: Measured, first: int) -> dict[str, object]:
    """Returns whether the stage is stable, as perf_analyzer means it and stricter.

    perf_analyzer wants throughput and mean latency of its last three windows within a tenth. Here the whole stage
    behind the warm-up is three windows, and throughput, mean and median latency must be within a tenth (largest over
    smallest).

    Returns:
        `stable` (None where the stage is too short to say) and `unstable` (what was not, in a few words).
    """
    count = measured.whole_windows
    if count - first < 3:
        return {"stable": None, "unstable": [f"only {count - first} windows: run longer to know"]}
    edges = np.linspace(first, count, 4).round().astype(int).tolist()
    parts = list(pairwise(edges))
    recorded = [measured.counts(first=start, last=end) for start, end in parts]
    if not all(len(values) for values, _ in recorded):
        return {"stable": False, "unstable": ["a third of the stage has no answer"]}
    throughput = [
        sum(measured.answered[number] for number in range(start, end)) / (end - start) for start, end in parts
    ]
    series = {
        "throughput": throughput,
        "mean latency": [histograms.mean(part) for part in recorded],
        "median latency": [_median_us(part) for part in recorded],
    }
    unstable = [
        f"{name} differs by {max(values) / min(values) - 1 if min(values) else float('inf'):.0%}"
        for name, values in series.items()
        if not max(values) <= (1 + TOLERANCE) * min(values)
    ]
    return {"stable": not unstable, "unstable": unstable}


def intervals_us(measured: Measured, place: int | None, first: int, shares: list[float]) -> npt.NDArray[np.float64]:
    """Returns the 95 % intervals of percentiles, (shares, 2) in µs, by a bootstrap over the stage's windows.

    Whole windows are drawn again, not requests: those that wait in one queue are slow together, and an interval that
    took them as independent would be too narrow (Efron & Tibshirani 1993, chapter 8).
    """
    numbers = [number for number in measured.windows if number >= first]
    parts = [measured.counts(place, number, number + 1) for number in numbers]
    values = np.unique(np.concatenate([part[0] for part in parts])) if parts else np.empty(0)
    if not len(values):
        return np.full((len(shares), 2), np.nan)
    table = np.zeros((len(parts), len(values)))
    for row, (latencies, times) in enumerate(parts):
        table[row, np.searchsorted(values, latencies)] = times
    chance = np.random.default_rng(0)
    drawn = chance.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), _RESAMPLES) @ table
    cumulative = np.cumsum(drawn, axis=1)
    bounds = []
    for share in shares:
        ranks = np.maximum(1, np.ceil(share * cumulative[:, -1:] - 1e-9))
        found = values[np.minimum((cumulative < ranks).sum(axis=1), len(values) - 1)]
        bounds.append(np.percentile(found, [2.5, 97.5]))
    return np.array(bounds)


def _median_us(recorded: Counts) -> float:
    return float(histograms.quantiles(recorded, [0.5])[0]) if len(recorded[0]) else float("nan")
