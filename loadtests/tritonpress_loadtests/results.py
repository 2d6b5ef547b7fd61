"""What a run found, as plain values: the content of `results.json`.

schema            "tritonpress-load/2"
scenario          the scenario's keys as they were used, with `path`, `sha256` (of file and queries), and in each of
                  `requests` its `queries_count`
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
  by_model        {model: {the same from `requests` to `latency_ms`, of this model's requests}}
  generator_cpu_share     CPU time of the load generator over wall time: near 1, it was the bottleneck itself
  models[]        what Triton says happened in the stage (see `model_rows`), each ensemble followed by its steps
  notes[]         what to know before believing the figures
slo               {p99_ms, error_rate, by_model: {model: {p99_ms, error_rate}}, met, misses[]}: for every stage
server            {name, version};  versions  {package: version};  machine  {cores, cpu, memory_gib, platform}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonpress_client import ModelStatistics

from tritonpress_loadtests.scenario import Slo

Results = dict[str, Any]
Samples = npt.NDArray[np.float64]
"""(answered, 3): sent at (s from the stage's start), latency (ms), the model's place in the scenario."""

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


def asked_model(row: Mapping[str, Any], models: Sequence[str]) -> str:
    """Returns which of the asked `models` a row of `model_rows` is, or is a step of; empty for a stranger."""
    owners = (model for model in models if row["model"] == model or row["model"].startswith(f"{model}_"))
    return max(owners, key=len, default="")


def summarise_stage(event: dict[str, Any], samples: Samples, models: Sequence[str]) -> dict[str, Any]:
    """Returns a stage of the results.

    Args:
        event: The load generator's `stage` event.
        samples: The answered requests.
        models: The models that were asked, in the scenario's order.
    """
    duration_s = event["duration_s"]
    by_model = {
        model: _figures(samples[samples[:, 2] == place], event["errors"].get(model, {}), duration_s)
        for place, model in enumerate(models)
    }
    errors: Counter[str] = Counter()
    for figures in by_model.values():
        errors.update(figures["errors"])
    places = {model: place for place, model in enumerate([*models, ""])}
    stage = {
        "users": event["users"],
        "planned_duration_s": event["planned_duration_s"],
        "duration_s": duration_s,
        **_figures(samples, errors, duration_s),
        "by_model": by_model,
        "generator_cpu_share": event["generator_cpu_share"],
        "models": sorted(
            event["models"], key=lambda row: (places[asked_model(row, models)], row["model"] not in models)
        ),
    }
    return {**stage, "notes": _notes(stage)}


def _figures(samples: Samples, errors: Mapping[str, int], duration_s: float) -> dict[str, Any]:
    """Returns what became of some requests of a stage: those of one model, or all."""
    sent_s, latency_ms = samples[:, 0], samples[:, 1]
    failed = sum(errors.values())
    requests = len(samples) + failed
    in_time = int(np.count_nonzero(sent_s + latency_ms / 1e3 <= duration_s))
    return {
        "requests": requests,
        "failed": failed,
        "error_rate": failed / requests if requests else 0.0,
        "errors": dict(errors),
        "throughput_per_s": in_time / duration_s,
        "latency_ms": _latency(latency_ms) if len(samples) else None,
    }


def _latency(latency_ms: Samples) -> dict[str, float]:
    percentiles = dict(zip(_PERCENTILES, np.percentile(latency_ms, _PERCENTILES), strict=True))
    return {
        "mean": float(latency_ms.mean()),
        "min": float(latency_ms.min()),
        **{f"p{percentile}": float(value) for percentile, value in percentiles.items()},
        "max": float(latency_ms.max()),
    }


def _notes(stage: dict[str, Any]) -> list[str]:
    """Returns what would make a reader trust the stage less."""
    notes = []
    answered = {model: figures["requests"] - figures["failed"] for model, figures in stage["by_model"].items()}
    few = [
        f"{max(1, count // 100)} of {count} requests" + (f" to {model}" if len(answered) > 1 else "")
        for model, count in answered.items()
        if count < 1000
    ]
    if few:
        notes.append(f"p99 rests on the slowest {', '.join(few)}: run longer to trust it")
    if stage["generator_cpu_share"] > _BUSY_SHARE:
        share = stage["generator_cpu_share"]
        notes.append(f"the load generator used {share:.0%} of a core: it may have been the bottleneck itself")
    for model, figures in stage["by_model"].items():
        seen = sum(row["answered"] for row in stage["models"] if row["model"] == model)
        if seen > figures["requests"]:
            count = f"{seen} requests to {model}, {figures['requests']} were sent"
            notes.append(f"the server answered {count}: something else loads it too")
    return notes


def verdict(stages: Sequence[dict[str, Any]], slo: Slo, by_model: Mapping[str, Slo]) -> dict[str, Any]:
    """Returns the limits, whether every stage kept them, and a sentence for each that did not.

    Args:
        stages: As `summarise_stage` returns them.
        slo: The limits of all requests together.
        by_model: Further limits, of single models.
    """
    misses = []
    for stage in stages:
        at = f"at {stage['users']} user{'' if stage['users'] == 1 else 's'}"
        misses += _misses(at, stage, slo)
        for model, model_slo in by_model.items():
            misses += _misses(f"{at}, {model}:", stage["by_model"][model], model_slo)
    limits = {model: model_slo.model_dump() for model, model_slo in by_model.items()}
    return {**slo.model_dump(), "by_model": limits, "met": not misses, "misses": misses}


def _misses(at: str, figures: dict[str, Any], slo: Slo) -> list[str]:
    misses = []
    if figures["error_rate"] > slo.error_rate:
        misses.append(f"{at} {figures['error_rate']:.2%} of requests failed, the limit is {slo.error_rate:.2%}")
    if figures["latency_ms"] is None:
        misses.append(f"{at} no request was answered")
    elif slo.p99_ms is not None and figures["latency_ms"]["p99"] > slo.p99_ms:
        misses.append(f"{at} p99 is {figures['latency_ms']['p99']:.1f} ms, the limit is {slo.p99_ms:g} ms")
    return misses
