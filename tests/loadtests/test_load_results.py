"""The arithmetic of results: percentiles, rows of the statistics, notes and the verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tritonpress_client import Duration, ModelStatistics
from tritonpress_loadtests import histograms
from tritonpress_loadtests.binding import binding_resource
from tritonpress_loadtests.measured import merge
from tritonpress_loadtests.recorder import Recorder
from tritonpress_loadtests.report import page, write_report
from tritonpress_loadtests.results import model_rows, summarise_stage
from tritonpress_loadtests.scenario import GeneratorLimits, Slo
from tritonpress_loadtests.slo import verdict
from tritonpress_loadtests.stages import Stage


def statistics(requests: int, *, name: str = "model", executions: int | None = None) -> ModelStatistics:
    """Returns counters of that many requests of one row, 1 ms each in every part."""
    runs = requests if executions is None else executions
    each = Duration(requests, requests * 1_000_000)
    return ModelStatistics(name, "1", requests, runs, {1: runs}, each, Duration(), each, each, each, each)


STAGE = Stage(users=4, duration_s=10)


def recorded(
    latency_ms: Any,
    *,
    place: int = 0,
    errors: dict[str, dict[str, int]] | None = None,
    models: Sequence[str] = ("m",),
    over_s: float = 9.0,
    recorder: Recorder | None = None,
) -> Recorder:
    """Returns a recorder of 10 s that has seen requests sent evenly over `over_s`, with those latencies, and errors."""
    recorder = recorder or Recorder(models, 10.0, 5.0)
    for sent_s, each_ms in zip(np.linspace(0, over_s, len(latency_ms)), latency_ms, strict=True):
        recorder.answered(place, 8, sent_s, sent_s + each_ms / 1e3, alone=False)
    for number, model in enumerate(models):
        for message, count in (errors or {}).get(model, {}).items():
            for _ in range(count):
                recorder.failed(number, 1.0, message)
    return recorder


def summary(
    *recorders: Recorder,
    models: Sequence[str] = ("m",),
    rows: Any = (),
    cpu_s: float = 1.0,
    began_late_s: float = 0.0,
) -> dict[str, Any]:
    """Returns a stage of 10 s that processes have recorded."""
    process = {"event": "stage", "duration_s": 10.0, "cpu_share": cpu_s / 10, "rss_bytes": 1, "most_in_flight": 4}
    process["began_late_s"] = began_late_s
    # Through JSON, as a process says it.
    events = json.loads(json.dumps([{**process, **recorder.state()} for recorder in recorders]))
    stage = summarise_stage(STAGE, merge(events, list(models)), models, rows, GeneratorLimits())
    server = {"cpu_cores": None, "memory_bytes": None, "machine_cpu_share": 0.1, "metrics": {}, "gpu": {}}
    return {**stage, "server": server, "binding": "nothing"}


def test_percentiles_are_known_to_a_thousandth() -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(1, 1001.0) / 10)
    latency = summary(recorded(shuffled))["latency_ms"]
    expected = {"min": 0.1, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "p999": 99.9, "max": 100, "mean": 50.05}
    assert latency == pytest.approx(expected, rel=1e-3)


def test_processes_are_merged_without_loss() -> None:
    chance = np.random.default_rng(0)
    first, second = chance.lognormal(1, 1, 700), chance.lognormal(2, 1, 300)
    apart = summary(recorded(first), recorded(second))
    together = summary(recorded(second, recorder=recorded(first)))
    for key in ("requests", "throughput_per_s", "latency_ms", "interval_ms", "windows"):
        assert apart[key] == together[key]
    assert apart["generator"]["processes"] == 2


def test_throughput_counts_what_was_answered_within_the_stage() -> None:
    recorder = Recorder(["m"], 10.0, 5.0)
    for sent_s in (0.0, 5.0, 9.999):
        recorder.answered(0, 8, sent_s, sent_s + 0.01, alone=False)
    stage = summary(recorder)
    assert stage["throughput_per_s"] == pytest.approx(0.2)
    assert stage["requests"] == 3


def test_requests_are_told_apart_by_length_and_company() -> None:
    first, second = Recorder(["a", "b"], 10.0, 5.0), Recorder(["a", "b"], 10.0, 5.0)
    first.answered(0, 8, 0.0, 0.01, alone=True)
    first.answered(0, 64, 0.0, 0.5, alone=False)
    second.answered(0, 8, 1.0, 1.03, alone=True)
    second.answered(1, 8, 1.0, 1.09, alone=True)
    stage = summary(first, second, models=("a", "b"))
    a, b = stage["by_model"]["a"], stage["by_model"]["b"]
    assert (a["words_up_to"], b["words_up_to"]) == ({"8": 2, "64": 1}, {"8": 1})
    assert list(a["alone"]) == list(b["alone"]) == ["8"]
    values, times = histograms.counts(histograms.merged([a["alone"]["8"]]))
    assert values == pytest.approx([10_000, 30_000], rel=1e-3)
    assert times.tolist() == [1, 1]


def test_failed_requests_are_counted_and_have_no_latency() -> None:
    stage = summary(recorded([1.0] * 4, errors={"m": {"boom": 3, "bang": 1}}))
    assert (stage["requests"], stage["failed"], stage["error_rate"]) == (8, 4, 0.5)
    nothing = summary(recorded([], errors={"m": {"boom": 3}}))
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
    rows = model_rows([], [statistics(3000, name="m")])
    assert summary(recorded([1.0] * 3000, over_s=9.99), rows=rows)["notes"] == []
    loud = summary(recorded([1.0] * 900, over_s=9.99), rows=rows, cpu_s=9.5)
    assert [note.split(":")[0] for note in loud["notes"]] == [
        "p99 rests on the slowest 9 of 900 requests",
        "the load generator was the bottleneck",
        "the server answered 3000 requests to m, 900 were sent",
    ]
    assert loud["generator"]["bottleneck"].startswith("used 95% of a core")
    (late,) = summary(recorded([1.0] * 3000, over_s=9.99), rows=rows, began_late_s=1.5)["notes"]
    assert late.startswith("a process of the load began 1.5 s late, ")
    elsewhere = summary(recorded([1.0] * 3000, over_s=9.99), rows=model_rows([], [statistics(1400, name="m")]))
    (note,) = elsewhere["notes"]
    assert note.startswith("the server counted 1400 of 3000 answers of m: ")


def test_a_warm_up_that_is_cut_is_told() -> None:
    stage = summary(recorded([30.0] * 200 + [5.0] * 800, over_s=9.99))
    assert (stage["warm_up_s"], stage["requests"]) == (2.0, 1000)
    assert stage["latency_ms"]["max"] == pytest.approx(5.0, rel=1e-3)
    (note,) = [note for note in stage["notes"] if "the first 2 s differ from the rest" in note]
    assert note.endswith("are no part of the latencies and their limits; their requests are counted")


def test_a_generator_that_is_late_says_so() -> None:
    recorder = recorded([20.0] * 1000)
    for _ in range(100):
        recorder.beat(0.015)
    late = summary(recorder)
    assert late["generator"]["bottleneck"].startswith("was 15.0 ms late at p99, of the 20.0 ms")
    assert binding_resource({**late, "models": []}, {}, 2) == "the load generator"


@pytest.mark.parametrize(
    ("slo", "errors", "latency_ms", "misses"),
    [
        (Slo(), {}, [5.0] * 100, []),
        (Slo(p99_ms=5.01), {}, [5.0] * 100, []),
        (Slo(p99_ms=4.9), {}, [5.0] * 100, ["at 4 users p99 is 5.0 ms, the limit is 4.9 ms"]),
        (Slo(p99_ms=100), {"boom": 9}, [5.0] * 991, []),
        (Slo(p99_ms=100), {"boom": 9}, [5.0] * 990 + [200.0], []),
        (
            Slo(p99_ms=100),
            {"boom": 9},
            [5.0] * 986 + [200.0] * 5,
            ["at 4 users 9 of 1,000 requests failed and 5 took longer than 100 ms: more than the 1% that p99 leaves"],
        ),
        (
            Slo(p999_ms=100),
            {"boom": 2},
            [5.0] * 998,
            [
                "at 4 users 2 of 1,000 requests failed and 0 took longer than 100 ms:"
                " more than the 0.1% that p99.9 leaves"
            ],
        ),
        (Slo(), {"boom": 1}, [5.0] * 99, []),
        (Slo(), {"boom": 2}, [5.0] * 98, ["at 4 users 2.00% of requests failed, the limit is 1.00%"]),
        (Slo(error_rate=0), {"boom": 1}, [5.0] * 99, ["at 4 users 1.00% of requests failed, the limit is 0.00%"]),
        (Slo(error_rate=1), {"boom": 1}, [], ["at 4 users no request was answered"]),
    ],
)
def test_the_verdict_falls_both_ways(
    slo: Slo, errors: dict[str, int], latency_ms: list[float], misses: list[str]
) -> None:
    stage = summary(recorded(latency_ms, errors={"m": errors}))
    found = verdict([stage], slo, {})
    assert found["misses"] == misses
    assert found["met"] is not bool(misses)


def test_figures_of_each_model_are_of_its_requests_alone() -> None:
    errors = {"a": {"boom": 1}, "b": {"boom": 2, "bang": 1}}
    both = recorded([1.0] * 30, models=("a", "b"), errors=errors)
    stage = summary(recorded([9.0] * 10, place=1, recorder=both), models=("a", "b"))
    assert (stage["requests"], stage["failed"], stage["errors"]) == (44, 4, {"boom": 3, "bang": 1})
    assert stage["throughput_per_s"] == pytest.approx(4.0)
    a, b = stage["by_model"]["a"], stage["by_model"]["b"]
    assert (a["requests"], a["failed"], a["throughput_per_s"], a["latency_ms"]["max"]) == (31, 1, 3.0, 1.0)
    assert (b["requests"], b["failed"], b["throughput_per_s"]) == (13, 3, 1.0)
    assert b["latency_ms"]["min"] == pytest.approx(9.0, rel=1e-3)
    few = "p99 rests on the slowest 1 of 30 requests to a, 1 of 10 requests to b: run longer to trust it"
    assert stage["notes"][0] == few


def test_each_ensemble_is_followed_by_its_steps() -> None:
    names = ["shop_step", "stranger", "shop_b_step", "shop", "shop_b", "other"]
    rows = model_rows([], [statistics(10, name=name) for name in names])
    stage = summary(Recorder(["shop_b", "shop"], 10.0, 5.0), models=("shop_b", "shop"), rows=rows)
    assert [row["model"] for row in stage["models"]] == [
        "shop_b", "shop_b_step", "shop", "shop_step", "stranger", "other"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limit_ms", "misses"), [(9.1, []), (8.9, ["at 4 users, b: p99 is 9.0 ms, the limit is 8.9 ms"])]
)
def test_a_model_may_have_limits_of_its_own(limit_ms: float, misses: list[str]) -> None:
    both = recorded([1.0] * 1000, models=("a", "b"))
    stage = summary(recorded([9.0], place=1, recorder=both), models=("a", "b"))
    found = verdict([stage], Slo(p99_ms=5), {"b": Slo(p99_ms=limit_ms)})
    assert found["misses"] == misses
    assert found["by_model"] == {"b": {"p99_ms": limit_ms, "p999_ms": None, "error_rate": 0.01}}


def test_a_model_that_was_not_asked_has_missed_nothing() -> None:
    stage = summary(recorded([1.0] * 100, models=("a", "b")), models=("a", "b"))
    assert stage["by_model"]["b"]["requests"] == 0
    assert verdict([stage], Slo(p99_ms=5), {"b": Slo(p99_ms=5, p999_ms=9)})["misses"] == []
    # Nor a part of a rate that changes in which nothing was due.
    parts = [
        {**stage, "label": "100/s from 0 s"},
        {**stage["by_model"]["b"], "label": "0.1/s from 5 s", "by_model": {}},
    ]
    assert verdict([{**stage, "pieces": parts}], Slo(p99_ms=5), {})["met"]


def of_run(*stages: dict[str, Any]) -> dict[str, Any]:
    """Returns results with these stages."""
    return {
        "scenario": {"name": "n", "requests": [{"model": "m", "queries_count": 1}], "path": "p", "sha256": "0" * 64},
        "url": "u", "command": "c", "started_at": "t", "interrupted": True, "stages": list(stages),
        "slo": verdict(stages, Slo(), {}), "server": {"name": "s", "version": "2"}, "versions": {},
        "machine": {"cores": 1, "cpu": "c", "memory_gib": 1.0}, "processes": 1, "repository_sha256": "0" * 64,
        "breakpoint": None, "recovery": None, "failure": "",
    }  # fmt: skip


def test_the_report_says_what_a_gpu_took() -> None:
    stage = summary(recorded([5.0] * 50))
    gpu = {"GPU-a": {"utilization": 0.87, "memory_bytes": 3 << 30, "power_w": 412.3, "energy_j": 90.0}}
    stage["server"]["gpu"] = {**gpu, "GPU-b": {"power_w": 80.0}}
    text = page(of_run(stage))
    assert "<dt>GPU</dt>" not in page(of_run(summary(recorded([5.0] * 50))))
    assert "GPU-a at 4 users: 87% used, 3.0 GiB, 412 W, 1800.0 J for 1,000 answers" in text
    assert "GPU-b at 4 users: 80 W" in text


def test_the_report_says_how_often_the_cache_had_the_answer() -> None:
    assert "cache hits" not in page(of_run(summary(recorded([5.0] * 50))))
    stage = summary(recorded([5.0] * 50))
    stage["server"]["metrics"] = {"m": {"cache_hits": 1500.0, "cache_misses": 500.0}}
    stage["models"] = [
        {"model": name, "answered": 2000, "failed": 0, "executions": 500, "mean_batch_size": 1.0, "batch_sizes": {},
         **{f"{part}_us": 1.0 for part in ("queue", "compute_input", "compute_infer", "compute_output", "total")}}
        for name in ("m", "m_step")
    ]  # fmt: skip
    text = page(of_run(stage))
    assert "<th>cache hits</th>" in text
    assert "<td>1,500 (75 %)</td>" in text
    assert "<td>–</td>" in text.split("m_step")[-1]


def test_the_report_shows_a_stage_whose_answers_all_came_too_late() -> None:
    recorder = Recorder(["m"], 10.0, 5.0)
    recorder.answered(0, 8, 9.9, 10.5, alone=True)
    stage = summary(recorder)
    assert (stage["requests"], stage["throughput_per_s"]) == (1, 0)
    assert "<svg" in page(of_run(stage))


def test_the_report_escapes_and_shows_a_stage_without_answers(tmp_path: Any) -> None:
    stage = summary(recorded([], errors={"m": {"<script>alert(1)</script>": 3}}))
    results = of_run(stage)
    write_report(results, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "3 × &lt;script&gt;" in text
    assert "interrupted" in text
    assert "missed" in text
