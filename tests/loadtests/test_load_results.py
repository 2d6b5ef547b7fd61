"""The arithmetic of results: percentiles, rows of the statistics, notes and the verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonpress_client import Duration, ModelStatistics
from tritonpress_loadtests.report import write_report
from tritonpress_loadtests.results import model_rows, summarise_stage, verdict
from tritonpress_loadtests.scenario import Slo


def statistics(requests: int, *, name: str = "model", executions: int | None = None) -> ModelStatistics:
    """Returns counters of that many requests of one row, 1 ms each in every part."""
    runs = requests if executions is None else executions
    each = Duration(requests, requests * 1_000_000)
    return ModelStatistics(name, "1", requests, runs, {1: runs}, each, Duration(), each, each, each, each)


def stage_event(**changes: Any) -> dict[str, Any]:
    """Returns a load generator's `stage` event."""
    event: dict[str, Any] = {"users": 4, "planned_duration_s": 10.0, "duration_s": 10.0, "errors": {}}
    return event | {"generator_cpu_share": 0.1, "models": []} | changes


def samples(latency_ms: Any, *, over_s: float = 9.0, place: Any = 0) -> np.ndarray[Any, Any]:
    """Returns requests sent evenly over `over_s`, with those latencies, to the model of that place."""
    return np.column_stack(np.broadcast_arrays(np.linspace(0, over_s, len(latency_ms)), latency_ms, place))


def test_percentiles_are_exact() -> None:
    latency = summarise_stage(stage_event(), samples(np.arange(1001.0) / 1e3), ["m"])["latency_ms"]
    expected = {"min": 0, "p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0, "mean": 0.5}
    assert latency == pytest.approx(expected)


def test_throughput_counts_what_was_answered_within_the_stage() -> None:
    stage = summarise_stage(stage_event(), np.array([[0.0, 10.0, 0], [5.0, 10.0, 0], [9.999, 10.0, 0]]), ["m"])
    assert stage["throughput_per_s"] == pytest.approx(0.2)
    assert stage["requests"] == 3


def test_failed_requests_are_counted_and_have_no_latency() -> None:
    stage = summarise_stage(stage_event(errors={"m": {"boom": 3, "bang": 1}}), samples([1.0] * 4), ["m"])
    assert (stage["requests"], stage["failed"], stage["error_rate"]) == (8, 4, 0.5)
    nothing = summarise_stage(stage_event(errors={"m": {"boom": 3}}), samples([]), ["m"])
    assert nothing["latency_ms"] is None
    assert nothing["error_rate"] == 1


def test_rows_are_what_happened_between_two_snapshots() -> None:
    (row,) = model_rows(
        [statistics(10), statistics(5, name="idle")], [statistics(40, executions=20), statistics(5, name="idle")]
    )
    assert (row["answered"], row["executions"], row["mean_batch_size"]) == (30, 10, 3.0)
    assert row["queue_us"] == row["compute_infer_us"] == pytest.approx(1000)


def test_models_that_appear_and_servers_that_restart_are_counted_from_zero() -> None:
    assert model_rows([], [statistics(7)])[0]["answered"] == 7
    assert model_rows([statistics(100)], [statistics(7)])[0]["answered"] == 7


def test_notes_warn_of_few_samples_a_busy_generator_and_strangers() -> None:
    rows = model_rows([], [statistics(3000)])
    quiet = summarise_stage(stage_event(models=rows), samples([1.0] * 3000), ["model"])
    assert quiet["notes"] == []
    loud = summarise_stage(stage_event(models=rows, generator_cpu_share=0.95), samples([1.0] * 900), ["model"])
    assert [note.split(":")[0] for note in loud["notes"]] == [
        "p99 rests on the slowest 9 of 900 requests",
        "the load generator used 95% of a core",
        "the server answered 3000 requests to model, 900 were sent",
    ]


@pytest.mark.parametrize(
    ("slo", "errors", "latency_ms", "misses"),
    [
        (Slo(), {}, [5.0] * 100, []),
        (Slo(p99_ms=5.0), {}, [5.0] * 100, []),
        (Slo(p99_ms=4.9), {}, [5.0] * 100, ["at 4 users p99 is 5.0 ms, the limit is 4.9 ms"]),
        (Slo(), {"boom": 1}, [5.0] * 99, []),
        (Slo(), {"boom": 2}, [5.0] * 98, ["at 4 users 2.00% of requests failed, the limit is 1.00%"]),
        (Slo(error_rate=0), {"boom": 1}, [5.0] * 99, ["at 4 users 1.00% of requests failed, the limit is 0.00%"]),
        (Slo(error_rate=1), {"boom": 1}, [], ["at 4 users no request was answered"]),
    ],
)
def test_the_verdict_falls_both_ways(
    slo: Slo, errors: dict[str, int], latency_ms: list[float], misses: list[str]
) -> None:
    stage = summarise_stage(stage_event(errors={"m": errors}), samples(latency_ms), ["m"])
    found = verdict([stage], slo, {})
    assert found["misses"] == misses
    assert found["met"] is not bool(misses)


def test_figures_of_each_model_are_of_its_requests_alone() -> None:
    both = np.concatenate([samples([1.0] * 30), samples([9.0] * 10, place=1)])
    stage = summarise_stage(stage_event(errors={"a": {"boom": 1}, "b": {"boom": 2, "bang": 1}}), both, ["a", "b"])
    assert (stage["requests"], stage["failed"], stage["errors"]) == (44, 4, {"boom": 3, "bang": 1})
    assert stage["throughput_per_s"] == pytest.approx(4.0)
    a, b = stage["by_model"]["a"], stage["by_model"]["b"]
    assert (a["requests"], a["failed"], a["throughput_per_s"], a["latency_ms"]["max"]) == (31, 1, 3.0, 1.0)
    assert (b["requests"], b["failed"], b["throughput_per_s"], b["latency_ms"]["min"]) == (13, 3, 1.0, 9.0)
    assert stage["notes"] == [
        "p99 rests on the slowest 1 of 30 requests to a, 1 of 10 requests to b: run longer to trust it"
    ]


def test_each_ensemble_is_followed_by_its_steps() -> None:
    names = ["shop_step", "stranger", "shop_b_step", "shop", "shop_b", "other"]
    rows = model_rows([], [statistics(10, name=name) for name in names])
    stage = summarise_stage(stage_event(models=rows), samples([]), ["shop_b", "shop"])
    assert [row["model"] for row in stage["models"]] == [
        "shop_b", "shop_b_step", "shop", "shop_step", "stranger", "other"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limit_ms", "misses"), [(9.0, []), (8.9, ["at 4 users, b: p99 is 9.0 ms, the limit is 8.9 ms"])]
)
def test_a_model_may_have_limits_of_its_own(limit_ms: float, misses: list[str]) -> None:
    both = np.concatenate([samples([1.0] * 1000), samples([9.0], place=1)])
    stage = summarise_stage(stage_event(), both, ["a", "b"])
    found = verdict([stage], Slo(p99_ms=5), {"b": Slo(p99_ms=limit_ms)})
    assert found["misses"] == misses
    assert found["by_model"] == {"b": {"p99_ms": limit_ms, "error_rate": 0.01}}


def test_the_report_escapes_and_shows_a_stage_without_answers(tmp_path: Any) -> None:
    stages = [summarise_stage(stage_event(errors={"m": {"<script>alert(1)</script>": 3}}), samples([]), ["m"])]
    results = {
        "scenario": {"name": "n", "requests": [{"model": "m", "queries_count": 1}], "path": "p", "sha256": "0" * 64},
        "url": "u", "command": "c", "started_at": "t", "interrupted": True, "stages": stages,
        "slo": verdict(stages, Slo(), {}), "server": {"name": "s", "version": "2"}, "versions": {},
        "machine": {"cores": 1, "cpu": "c", "memory_gib": 1.0},
    }  # fmt: skip
    write_report(results, [samples([])], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "3 × &lt;script&gt;" in page
    assert "interrupted" in page
    assert "missed" in page
