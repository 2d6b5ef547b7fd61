"""What a run found, as plain values: the content of `results.json`.

schema            "tritonpress-load/1"
scenario          the scenario's keys as they were used, with `path`, `sha256` (of file and queries) and `queries_count`
url, command      what was loaded, and the command that repeats it
started_at        ISO 8601 with the offset
loop              "closed": each user waits for its answer; latency is counted from the actual send
interrupted       whether the run was ended early; the last stage is then shorter than planned
duration_scale    what the scenario's durations were multiplied by
stages[]          in the order of the scenario
  users, planned_duration_s, duration_s
  requests        sent;  failed  of these;  error_rate  the share;  errors  {message: count}
  throughput_per_s        answered within the stage's duration, a second
  latency_ms      {mean, min, p50, p90, p95, p99, max} of the answered requests, resolution below 1 µs; null if none
  generator_cpu_share     CPU time of the load generator over wall time: near 1, it was the bottleneck itself
  models[]        what Triton says happened in the stage, the ensemble first (see `model_rows`)
  notes[]         what to know before believing the figures
slo               {p99_ms, error_rate, met, misses[]}: every stage must reach it
server            {name, version};  versions  {package: version};  machine  {cores, cpu, memory_gib, platform}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonpress_client import ModelStatistics

from tritonpress_loadtests.scenario import Slo

Results = dict[str, Any]
Samples = npt.NDArray[np.float64]

_PERCENTILES = (50, 90, 95, 99)
_BUSY_SHARE = 0.8


def model_rows(before: Sequence[ModelStatistics], after: Sequence[ModelStatistics]) -> list[dict[str, Any]]:
    """Returns a row for each model that served something between two snapshots, the busiest first.

    A row: model, version, answered, failed, executions, mean_batch_size (rows an execution), batch_sizes ({rows:
    executions}), and the mean time a request in µs: total_us, queue_us, compute_input_us, compute_infer_us,
    compute_output_us. An ensemble's compute times are the sums over its steps; the steps' queues are in its total.
    Triton counts a request that failed in a step of an ensemble twice.
    """
    earlier = {(entry.name, entry.version): entry for entry in before}
    rows = []
    for entry in after:
        known = earlier.get((entry.name, entry.version))
        # A server that restarted meanwhile counts from 0 again.
        restarted = known is not None and known.success.count > entry.success.count
        spent = entry if known is None or restarted else entry - known
        if not spent.success.count and not spent.fail.count:
            continue
        rows.append(
            {
                "model": spent.name,
                "version": spent.version,
                "answered": spent.success.count,
                "failed": spent.fail.count,
                "executions": spent.execution_count,
                "mean_batch_size": spent.inference_count / spent.execution_count if spent.execution_count else 0.0,
                "batch_sizes": {str(size): count for size, count in sorted(spent.batch_sizes.items())},
                "total_us": spent.success.mean_us,
                "queue_us": spent.queue.mean_us,
                "compute_input_us": spent.compute_input.mean_us,
                "compute_infer_us": spent.compute_infer.mean_us,
                "compute_output_us": spent.compute_output.mean_us,
            }
        )
    return sorted(rows, key=lambda row: -row["total_us"])


def summarise_stage(event: dict[str, Any], samples: Samples, model: str) -> dict[str, Any]:
    """Returns a stage of the results.

    Args:
        event: The load generator's `stage` event.
        samples: float64 (answered, 2): sent at (s from the stage's start), latency (ms).
        model: The model that was asked.
    """
    sent_s, latency_ms = samples[:, 0], samples[:, 1]
    duration_s = event["duration_s"]
    failed = sum(event["errors"].values())
    requests = len(samples) + failed
    in_time = int(np.count_nonzero(sent_s + latency_ms / 1e3 <= duration_s))
    stage = {
        "users": event["users"],
        "planned_duration_s": event["planned_duration_s"],
        "duration_s": duration_s,
        "requests": requests,
        "failed": failed,
        "error_rate": failed / requests if requests else 0.0,
        "errors": event["errors"],
        "throughput_per_s": in_time / duration_s,
        "latency_ms": _latency(latency_ms) if len(samples) else None,
        "generator_cpu_share": event["generator_cpu_share"],
        "models": sorted(event["models"], key=lambda row: row["model"] != model),
    }
    return {**stage, "notes": _notes(stage, model)}


def _latency(latency_ms: Samples) -> dict[str, float]:
    percentiles = dict(zip(_PERCENTILES, np.percentile(latency_ms, _PERCENTILES), strict=True))
    return {
        "mean": float(latency_ms.mean()),
        "min": float(latency_ms.min()),
        **{f"p{percentile}": float(value) for percentile, value in percentiles.items()},
        "max": float(latency_ms.max()),
    }


def _notes(stage: dict[str, Any], model: str) -> list[str]:
    """Returns what would make a reader trust the stage less."""
    notes = []
    answered = stage["requests"] - stage["failed"]
    if answered < 1000:
        notes.append(
            f"p99 rests on the slowest {max(1, answered // 100)} of {answered} requests: run longer to trust it"
        )
    if stage["generator_cpu_share"] > _BUSY_SHARE:
        share = stage["generator_cpu_share"]
        notes.append(f"the load generator used {share:.0%} of a core: it may have been the bottleneck itself")
    seen = sum(row["answered"] for row in stage["models"] if row["model"] == model)
    if seen > stage["requests"]:
        notes.append(f"the server answered {seen} requests, {stage['requests']} were sent: something else loads it too")
    return notes


def verdict(stages: Sequence[dict[str, Any]], slo: Slo) -> dict[str, Any]:
    """Returns the limits, whether every stage kept them, and a sentence for each that did not."""
    misses = []
    for stage in stages:
        at = f"at {stage['users']} users"
        if stage["error_rate"] > slo.error_rate:
            misses.append(f"{at} {stage['error_rate']:.2%} of requests failed, the limit is {slo.error_rate:.2%}")
        if stage["latency_ms"] is None:
            misses.append(f"{at} no request was answered")
        elif slo.p99_ms is not None and stage["latency_ms"]["p99"] > slo.p99_ms:
            misses.append(f"{at} p99 is {stage['latency_ms']['p99']:.1f} ms, the limit is {slo.p99_ms:g} ms")
    return {**slo.model_dump(), "met": not misses, "misses": misses}
