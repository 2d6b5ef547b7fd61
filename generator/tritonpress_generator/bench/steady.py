"""The latency at 60 % of the highest throughput."""

from __future__ import annotations

from typing import Any

import numpy as np

from tritonpress_generator.bench.texts import requests
from tritonpress_generator.bench.timing import closed_loop, open_loop
from tritonpress_generator.bench.variants import Bench

STEADY_SHARE = 0.6
_CALLERS = (8, 16, 32)
_SLICES_HIGHEST = 10
_SLICES_STEADY = 70


def section(bench: Bench) -> Any:
    """Returns and prints the latency at a steady load, in each precision."""
    return {precision: _steady(bench, precision) for precision in bench.graphs}


def _steady(bench: Bench, precision: str) -> dict[str, float]:
    """Returns and prints the latency with Poisson arrivals, from when each request was due."""
    asked = requests(bench.texts)
    local = bench.in_process(precision)
    short_s, seconds = _SLICES_HIGHEST * bench.slice_s, _SLICES_STEADY * bench.slice_s
    with bench.messages(precision, "single", asked) as messages:
        highest = max(closed_loop(messages, callers, short_s)[0] for callers in _CALLERS)
        times = open_loop(messages, STEADY_SHARE * highest, 64, seconds, seed=1)
    engine = closed_loop(local.engine_alone(asked), 1, short_s)[1]
    p50, p99 = map(float, np.percentile(times, [50, 99]))
    own50, own99 = map(float, np.percentile(engine, [50, 99]))
    print(
        f"{precision.upper()}, mixed lengths at {STEADY_SHARE * highest:.0f} requests/s, {STEADY_SHARE:.0%} of "
        f"{highest:.0f}, for {seconds:.0f} s: p50 {p50:.1f} ms, p99 {p99:.1f} ms, {p99 / p50:.1f} times the p50 "
        f"(the engine's own times for these texts, alone: {own50:.1f} and {own99:.1f} ms, {own99 / own50:.1f} times)\n",
        flush=True,
    )
    return {"highest_per_s": highest, "p50_ms": p50, "p99_ms": p99, "engine_p50_ms": own50, "engine_p99_ms": own99}
