"""What the load generator says of itself in a stage, and whether its own slowness is in the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonpress_loadtests import histograms
from tritonpress_loadtests.measured import Measured
from tritonpress_loadtests.scenario import GeneratorLimits
from tritonpress_loadtests.stages import Stage

_NEVER_LATE_MS = 1.0


def offered_per_s(measured: Measured, requests: int) -> float:
    """Returns the rate of the stage's requests over the time in which they were sent."""
    offered_in_s = measured.gave_up_after_s or measured.duration_s
    return requests / offered_in_s if offered_in_s else 0.0


def generator_figures(
    measured: Measured, whole: Mapping[str, Any], stage: Stage, limits: GeneratorLimits
) -> dict[str, Any]:
    """Returns what the generator says of itself.

    processes, cpu_share (of the busiest, 1 is a core), loop_lag_ms and start_lag_ms ({p50, p99, max}; null if none),
    began_late_s (of a closed loop, whose figures count from then on), gave_up_after_s (of an open loop that was too far
    behind to go on; null if it was not), rss_bytes, and `bottleneck`: why its own slowness is in the figures, empty if
    it is not.
    """
    loop_lag, start_lag = (_lag_ms(histogram) for histogram in (measured.loop_lag, measured.start_lag))
    cpu_share = max(measured.cpu_shares)
    # Requests that wait for the limit in flight start late by the scenario's will, which has a note of its own.
    lag = start_lag if stage.is_open and not measured.limit_hits else loop_lag
    latency_ms = whole["latency_ms"]
    bottleneck = ""
    if measured.gave_up_after_s:
        offered, wanted = offered_per_s(measured, whole["requests"]), measured.due / stage.duration_s
        bottleneck = f"offered {offered:.0f} of {wanted:.0f}/s: use more --processes, or another machine"
    elif cpu_share > limits.cpu_share:
        bottleneck = f"used {cpu_share:.0%} of a core, the limit is {limits.cpu_share:.0%}: use more --processes"
    elif lag and latency_ms and lag["p99"] > max(_NEVER_LATE_MS, limits.lag_share * latency_ms["p99"]):
        bottleneck = (
            f"was {lag['p99']:.1f} ms late at p99, of the {latency_ms['p99']:.1f} ms that it measured:"
            " use more --processes, or a machine of its own"
        )
    return {
        "processes": len(measured.cpu_shares),
        "cpu_share": cpu_share,
        "loop_lag_ms": loop_lag,
        "start_lag_ms": start_lag,
        "began_late_s": measured.began_late_s,
        "gave_up_after_s": measured.gave_up_after_s,
        "rss_bytes": sum(measured.rss_bytes),
        "bottleneck": bottleneck,
    }


def _lag_ms(histogram: Any) -> dict[str, float] | None:
    recorded = histograms.counts(histogram)
    if not len(recorded[0]):
        return None
    values: npt.NDArray[np.float64] = histograms.quantiles(recorded, [0.5, 0.99, 1]) / 1e3
    return dict(zip(("p50", "p99", "max"), values.tolist(), strict=True))
