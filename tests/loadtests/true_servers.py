"""Servers that are known exactly, and what a run of one would have measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tritonpress_loadtests import histograms
from tritonpress_loadtests.simulator import Replica, simulate

TRUTH = Replica(instances=2, max_batch=8, fixed_s=0.006, per_row_s=0.004)
REST_S = 0.002
RATES = (20, 120, 200, 290)


def true_latencies_s(
    rate_per_s: float, *, seed: int, count: int = 60_000, truth: Replica = TRUTH
) -> np.ndarray[Any, Any]:
    chance = np.random.default_rng(seed)
    due_s = np.cumsum(chance.exponential(1 / rate_per_s, count))
    return simulate(due_s, chance.gamma(8, 1 / 8, count), truth, seed=seed)[count // 10 :] + REST_S


def stage(rate_per_s: float, *, truth: Replica = TRUTH, model: str = "m") -> dict[str, Any]:
    """Returns what a stage at that rate would have measured of the true server."""
    times_s = true_latencies_s(rate_per_s, seed=int(rate_per_s), truth=truth)
    histogram = histograms.new()
    for each_s in times_s.tolist():
        histogram.record_value(round(each_s * 1e6))
    recorded = histograms.counts(histogram)
    p50, p99, p999 = (histograms.quantiles(recorded, [0.5, 0.99, 0.999]) / 1e3).tolist()
    duration_s = len(times_s) / rate_per_s
    alone_s = truth.fixed_s + truth.per_row_s
    light = rate_per_s * alone_s < 1
    sizes = {"1": 1000} if light else {"1": 800, "3": 200, str(truth.max_batch): 100}
    execution_ms = {size: 1e3 * (truth.fixed_s + truth.per_row_s * int(size)) for size in sizes}
    row = {"model": f"{model}_step", "batch_sizes": sizes, "execution_ms": execution_ms}
    row["queue_us"] = max(0.0, 1e6 * (float(times_s.mean()) - REST_S - alone_s)) if light else 1000.0
    busy_s = min(0.99, rate_per_s / 400 * alone_s / 0.01) * 2 * duration_s
    scale = busy_s / sum(count * execution_ms[size] / 1e3 for size, count in sizes.items())
    row["batch_sizes"] = {size: count * scale for size, count in sizes.items()}
    latency_ms = {"mean": float(times_s.mean()) * 1e3, "p50": p50, "p99": p99, "p999": p999}
    histogram = histograms.encoded(histogram)
    own = histograms.new()
    for each_s in np.random.default_rng(1).gamma(8, alone_s / 8, 3_000).tolist():
        own.record_value(round((each_s + REST_S + truth.delay_s) * 1e6))
    figures = {"latency_ms": latency_ms, "words_up_to": {"8": len(times_s)}, "alone": {"8": histograms.encoded(own)}}
    figures["whole_mean_ms"] = latency_ms["mean"]
    return {
        "label": f"{rate_per_s}/s", "loop": "open", "users": None, "arrivals": "poisson", "offered_per_s": rate_per_s,
        "throughput_per_s": rate_per_s, "duration_s": duration_s, "error_rate": 0.0, "models": [row], "warm_up_s": 0,
        "latency_ms": latency_ms, "by_model": {model: figures},
        "histogram": histogram, "generator": {"bottleneck": "", "processes": 1},
        "windows": {"width_s": 1.0, "answered_per_s": [rate_per_s] * 20, "p50_ms": [p50] * 20, "p99_ms": [p99] * 20},
    }  # fmt: skip


def run_of(truth: Replica, rates: Sequence[float]) -> dict[str, Any]:
    """Returns a run of that server at these rates."""
    delay_us = round(truth.delay_s * 1e6)
    config = {"instances": truth.instances, "max_batch_size": truth.max_batch, "batched": True}
    return {
        "schema": "tritonpress-load/4", "stages": [stage(rate, truth=truth) for rate in rates],
        "served": {"m_step": {**config, "queue_delay_us": delay_us, "config_sha256": "0"}},
        "scenario": {"name": "n", "requests": [{"model": "m", "weight": 1, "words_up_to": {"8": 1.0}}]},
        "machine": {"cpu": "c", "cores": 2}, "repository_sha256": "0",
    }  # fmt: skip
