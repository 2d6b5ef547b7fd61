"""What a run found, as plain values: the content of `results.json`, from which report and plots are made.

schema            "tritonpress-load/4"
scenario          the scenario's keys as they were used, with `path`, `sha256` (of file and queries), and in each of
                  `requests` its `queries_count`, `query_words` {mean, p50, p90, max}, and `words_up_to`
                  {class: how likely a query is of it}; a class is the power of two that its words do not exceed
url, command      what was loaded, and the command that repeats it
started_at        ISO 8601 with the offset
interrupted       whether the run was ended early; the last stage is then shorter than planned
failure           why the load ended before its last stage, such as a generator that is gone; empty if it did not
duration_scale    what the scenario's durations were multiplied by
processes         how many processes made the load
stages[]          in their order; see `summarise_stage`
breakpoint        {kept_per_s, missed_per_s} of a search, else null
recovery          {recovered_after_s} of a recovery, else null
slo               {p99_ms, p999_ms, error_rate, by_model: {model: limits}, met, misses[]}
server            {name, version};  served  {model: {instances, max_batch_size, batched, queue_delay_us, …}}
repository_sha256 of all served models' configs: two runs of one repository have the same
versions          {package: version};  machine  {cores, cpu, memory_gib, platform}; `cores` are those that the server
                  may use, or where it is elsewhere the process that ran this
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tritonpress_client import ModelStatistics

from tritonpress_loadtests import histograms, stability
from tritonpress_loadtests.generator_figures import generator_figures, offered_per_s
from tritonpress_loadtests.measured import Measured
from tritonpress_loadtests.notes import notes
from tritonpress_loadtests.scenario import GeneratorLimits
from tritonpress_loadtests.stages import Stage

Results = dict[str, Any]

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
_CHANGES: dict[str, object] = {"stable": False, "unstable": ["its rate is meant to change"]}


def model_rows(before: Sequence[ModelStatistics], after: Sequence[ModelStatistics]) -> list[dict[str, Any]]:
    """Returns a row for each model that served something between two snapshots, the busiest first.

    A row: model, version, answered, failed, executions, mean_batch_size (rows an execution), batch_sizes ({rows:
    executions}), execution_ms ({rows: mean ms of such an execution}), and the mean time a request in µs: total_us,
    queue_us, compute_input_us, compute_infer_us, compute_output_us. An ensemble's compute times are the sums over its
    steps; the steps' queues are in its total. Triton counts a request that failed in a step of an ensemble twice.
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
        sizes = sorted(spent.batch_sizes.items())
        rows.append(
            {
                "model": spent.name,
                "version": spent.version,
                "answered": spent.success.count,
                "failed": spent.fail.count,
                "executions": spent.execution_count,
                "mean_batch_size": spent.inference_count / spent.execution_count if spent.execution_count else 0.0,
                "batch_sizes": {str(size): count for size, count in sizes},
                "execution_ms": {str(size): spent.execution_ns.get(size, 0) / count / 1e6 for size, count in sizes},
                "total_us": spent.success.mean_us,
                "queue_us": spent.queue.mean_us,
                "compute_input_us": spent.compute_input.mean_us,
                "compute_infer_us": spent.compute_infer.mean_us,
                "compute_output_us": spent.compute_output.mean_us,
            }
        )
    return sorted(rows, key=lambda row: -row["total_us"])


def by_load(results: Results) -> list[dict[str, Any]]:
    """Returns the figures of each load that was held: of a stage, or of each part of one whose rate changes.

    Keys: `label`, `offered_per_s` (None in a closed loop), `throughput_per_s`, `latency_ms`, `by_model`, all as a stage
    has them.
    """
    loads: list[dict[str, Any]] = []
    for stage in results["stages"]:
        loads += [{**part, "offered_per_s": part["rate_per_s"]} for part in stage["pieces"]] or [
            {**stage, "offered_per_s": stage["offered_per_s"] if stage["loop"] == "open" else None}
        ]
    return loads


def asked_model(row: Mapping[str, Any], models: Sequence[str]) -> str:
    """Returns which of the asked `models` a row of `model_rows` is, or is a step of; empty for a stranger."""
    owners = (model for model in models if row["model"] == model or row["model"].startswith(f"{model}_"))
    return max(owners, key=len, default="")


def summarise_stage(
    stage: Stage,
    measured: Measured,
    models: Sequence[str],
    rows: Sequence[dict[str, Any]],
    limits: GeneratorLimits,
) -> dict[str, Any]:
    """Returns a stage of the results; latencies are of the requests behind the warm-up that is cut.

    label, name, loop ("open", "closed"), users, rate_per_s, arrivals, planned_duration_s, duration_s
    requests, failed, error_rate, errors {message: count}, throughput_per_s (answered within the duration)
    latency_ms      {mean, min, p50, p90, p95, p99, p999, max}: from the scheduled moment in an open loop, from sending
                    in a closed one; of answers alone, null if none.  interval_ms  {p50: [low, high], …}, of 95 %
    histogram       HdrHistogram V2 of µs, base64
    by_model        {model: {the same from `requests` to `histogram`, and, of the whole stage, its warm-up too:
                    whole_mean_ms   the mean latency; null if nothing was answered
                    words_up_to     {class of lengths: answers}
                    alone           {class: histogram}, of those sent while their process had none to it in flight}}
    offered_per_s   requests over the duration, or until the generator gave up;  most_in_flight  at once
    warm_up_s       cut at the start;  stable, unstable[]  see `stability.verdict`
    windows         {width_s, p50_ms[], p99_ms[], answered_per_s[], failed[]} over time
    pieces[]        the parts of a rate that changes: label, rate_per_s, from_s, until_s, throughput_per_s, the same
                    from `requests` to `histogram`, and by_model, of the windows that lie wholly in a part; else empty
    late            requests sent more than 1 ms after their moment;  limit_hits  that waited for the limit in flight
    generator       see `generator_figures.generator_figures`
    models[]        what Triton says happened in the stage (see `model_rows`), each ensemble followed by its steps
    notes[]         what to know before believing the figures
    server, binding  see `ServerWatch.finish` and `binding.binding_resource`; `run` adds them
    """
    # Of a rate that changes, latency is meant to change too: nothing is cut, and its parts are looked at by themselves.
    first = 0 if stage.pieces else stability.warm_up_windows(measured)
    by_model = {
        model: {
            **_figures(measured, place, first, measured.errors[model], measured.in_time[place]),
            **_by_words(measured, place),
        }
        for place, model in enumerate(models)
    }
    errors: Counter[str] = Counter()
    for figures in by_model.values():
        errors.update(figures["errors"])
    places = {model: place for place, model in enumerate([*models, ""])}
    whole = _figures(measured, None, first, errors, sum(measured.in_time))
    summary = {
        "label": stage.label,
        "name": stage.name,
        "loop": "open" if stage.is_open else "closed",
        "users": stage.users,
        "rate_per_s": stage.rate_per_s,
        "arrivals": stage.model_dump(mode="json")["arrivals"] if stage.is_open else None,
        "planned_duration_s": stage.duration_s,
        "duration_s": measured.duration_s,
        **whole,
        "offered_per_s": offered_per_s(measured, whole["requests"]),
        "by_model": by_model,
        "warm_up_s": first * measured.window_s,
        **(_CHANGES if stage.pieces else stability.verdict(measured, first)),
        "pieces": _pieces(stage, measured, models),
        "windows": _windows(measured),
        "late": measured.late,
        "limit_hits": measured.limit_hits,
        "most_in_flight": measured.most_in_flight,
        "generator": generator_figures(measured, whole, stage, limits),
        "models": sorted(rows, key=lambda row: (places[asked_model(row, models)], row["model"] not in models)),
    }
    return {**summary, "notes": notes(summary)}


def _figures(
    measured: Measured, place: int | None, first: int, errors: Mapping[str, int], in_time: int
) -> dict[str, Any]:
    """Returns what became of some requests of a stage: those of one model, or all."""
    answered = int(measured.counts(place)[1].sum())
    failed = sum(errors.values())
    recorded = measured.counts(place, first)
    found: dict[str, Any] = {"latency_ms": _latency_ms(recorded), "interval_ms": None}
    if found["latency_ms"]:
        bounds_ms = stability.intervals_us(measured, place, first, list(PERCENTILES.values())) / 1e3
        found["interval_ms"] = dict(zip(PERCENTILES, bounds_ms.tolist(), strict=True))
    return {
        "requests": answered + failed,
        "failed": failed,
        "error_rate": failed / (answered + failed) if answered + failed else 0.0,
        "errors": dict(errors),
        "throughput_per_s": in_time / measured.duration_s if measured.duration_s else 0.0,
        **found,
        "histogram": histograms.encoded(measured.histogram(place, first)),
    }


def _latency_ms(recorded: histograms.Counts) -> dict[str, float] | None:
    """Returns mean, extremes and percentiles; None if nothing was answered."""
    if not len(recorded[0]):
        return None
    quantiles_ms = histograms.quantiles(recorded, list(PERCENTILES.values())) / 1e3
    return {
        "mean": histograms.mean(recorded) / 1e3,
        "min": float(recorded[0][0]) / 1e3,
        **dict(zip(PERCENTILES, quantiles_ms.tolist(), strict=True)),
        "max": float(recorded[0][-1]) / 1e3,
    }


def _pieces(stage: Stage, measured: Measured, models: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the figures of each part of a rate that changes, by the windows that lie in it as a whole."""
    if stage.pieces is None:
        return []
    rows = []
    width_s = measured.window_s
    edges = pairwise(stage.pieces.edges_s(stage.duration_s))
    for rate_per_s, (from_s, until_s) in zip(stage.pieces.rates_per_s, edges, strict=True):
        first = math.ceil(from_s / width_s - 1e-6)
        last = min(math.floor(until_s / width_s + 1e-6), measured.whole_windows)
        if first >= last:
            break  # ended before
        answered = sum(measured.answered[number] for number in range(first, last))
        rows.append(
            {
                "label": f"{rate_per_s:g}/s from {from_s:g} s",
                "rate_per_s": rate_per_s,
                "from_s": from_s,
                "until_s": until_s,
                **_part(measured, None, first, last),
                "throughput_per_s": answered / ((last - first) * width_s),
                "by_model": {model: _part(measured, place, first, last) for place, model in enumerate(models)},
            }
        )
    return rows


def _part(measured: Measured, place: int | None, first: int, last: int) -> dict[str, Any]:
    """Returns what became of the requests to a model (or all) that were due in some windows."""
    histogram = measured.histogram(place, first, last)
    recorded, failed = histograms.counts(histogram), measured.failures(place, first, last)
    requests = failed + int(recorded[1].sum())
    return {
        "requests": requests,
        "failed": failed,
        "error_rate": failed / requests if requests else 0.0,
        "latency_ms": _latency_ms(recorded),
        "interval_ms": None,
        "histogram": histograms.encoded(histogram),
    }


def _by_words(measured: Measured, place: int) -> dict[str, Any]:
    """Returns how many queries of each class of lengths a model answered, and how long it took, for single ones too."""
    recorded = measured.counts(place)
    classes = sorted(up_to for asked, up_to in measured.words_up_to if asked == place)
    alone = {str(up_to): measured.alone[place, up_to] for up_to in classes if (place, up_to) in measured.alone}
    return {
        "whole_mean_ms": histograms.mean(recorded) / 1e3 if len(recorded[0]) else None,
        "words_up_to": {str(up_to): measured.words_up_to[place, up_to] for up_to in classes},
        "alone": {up_to: histograms.encoded(histogram) for up_to, histogram in alone.items()},
    }


def _windows(measured: Measured) -> dict[str, Any]:
    """Returns the course of a stage, None where a window has no answer."""
    numbers = range(measured.whole_windows)
    recorded = [measured.counts(first=number, last=number + 1) for number in numbers]
    quantiles = [histograms.quantiles(part, [0.5, 0.99]) / 1e3 if len(part[0]) else (None, None) for part in recorded]
    return {
        "width_s": measured.window_s,
        "p50_ms": [None if p50 is None else float(p50) for p50, _ in quantiles],
        "p99_ms": [None if p99 is None else float(p99) for _, p99 in quantiles],
        "answered_per_s": [measured.answered[number] / measured.window_s for number in numbers],
        "failed": [measured.failures(first=number, last=number + 1) for number in numbers],
    }
