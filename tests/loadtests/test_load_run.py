"""A run against the real server: its figures hold together, its files are whole, and it ends well in every way."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from scenarios import plain_locust, write_scenario
from tritonpress_client import Connection, InvalidInputError, ModelUnavailableError, ServerUnreachableError
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.run import RunOptions, run
from tritonpress_server import TritonServer

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def results(measured: Path) -> dict[str, Any]:
    """The results of the short run, as they were written."""
    loaded: dict[str, Any] = json.loads((measured / "results.json").read_text(encoding="utf-8"))
    return loaded


def test_stages_are_as_planned_and_nothing_failed(results: dict[str, Any]) -> None:
    assert [stage["users"] for stage in results["stages"]] == [1, 6]
    for stage in results["stages"]:
        # No shorter; longer by what the generator slept.
        assert stage["planned_duration_s"] <= stage["duration_s"] < stage["planned_duration_s"] + 5
        assert stage["failed"] == 0
        assert stage["requests"] > 20
    assert results["slo"]["met"]
    assert {stage["loop"] for stage in results["stages"]} == {"closed"}
    assert results["interrupted"] is False


def test_latencies_are_ordered_and_within_their_intervals(results: dict[str, Any]) -> None:
    for stage in results["stages"]:
        latency = stage["latency_ms"]
        ordered = [latency[name] for name in ("min", "p50", "p90", "p95", "p99", "p999", "max")]
        assert ordered == sorted(ordered)
        for name, (low, high) in stage["interval_ms"].items():
            assert low <= latency[name] <= high or latency[name] == pytest.approx(low, rel=0.2)


def test_the_server_is_watched_beside_the_load(results: dict[str, Any]) -> None:
    for stage in results["stages"]:
        assert 0.01 < stage["server"]["cpu_cores"] < results["machine"]["cores"] * 1.1
        assert stage["server"]["memory_bytes"] > 50e6
        assert stage["binding"]
        assert stage["generator"]["loop_lag_ms"]["p50"] > 0
        for row in stage["models"][1:]:
            assert all(mean_ms > 0 for mean_ms in row["execution_ms"].values())
    step = results["stages"][0]["models"][1]["model"]
    assert results["served"][step]["instances"] >= 1
    assert results["served"][step]["max_batch_size"] >= 1


def test_users_are_throughput_times_latency(results: dict[str, Any]) -> None:
    # Little's law, of all that was sent, so that what was answered behind the end counts for no longer than to it. What
    # is missing is the generator's own time between an answer and the next request, and that in which it stood still.
    for stage in results["stages"]:
        whole_s = stage["by_model"]["recommendation"]["whole_mean_ms"] * stage["requests"] / 1e3
        behind_the_end = stage["requests"] - stage["throughput_per_s"] * stage["duration_s"]
        assert whole_s - behind_the_end * stage["latency_ms"]["max"] / 1e3 < 1.05 * stage["users"] * stage["duration_s"]
        awake_s = stage["duration_s"] - stage["generator"]["loop_lag_ms"]["max"] / 1e3
        assert whole_s > 0.6 * stage["users"] * awake_s > 0


def test_the_server_counted_the_same_requests(results: dict[str, Any]) -> None:
    for stage in results["stages"]:
        ensemble, *steps = stage["models"]
        assert ensemble["model"] == "recommendation"
        assert ensemble["answered"] == stage["requests"]
        assert steps
        for row in steps:
            assert row["model"].startswith("recommendation_")
            assert row["mean_batch_size"] >= 1
            assert row["executions"] == sum(row["batch_sizes"].values())
        assert ensemble["total_us"] < stage["by_model"]["recommendation"]["whole_mean_ms"] * 1e3


def test_results_say_what_ran(results: dict[str, Any], tiny_server: TritonServer) -> None:
    assert results["url"] == tiny_server.grpc_url
    assert [request["queries_count"] for request in results["scenario"]["requests"]] == [24]
    assert len(results["scenario"]["sha256"]) == 64
    words = shlex.split(results["command"])
    assert words[:2] == ["tritonpress-load", "run"]
    assert Path(words[2]).exists()
    assert results["server"]["version"].startswith("2.")
    assert {"python", "locust", "tritonclient"} <= set(results["versions"])
    assert results["machine"]["cores"] >= 1
    assert results["machine"]["memory_gib"] > 0


def test_plots_and_report_are_written(measured: Path, results: dict[str, Any]) -> None:
    for name in ("throughput_latency.png", "latency.png", "over_time.png", "batches.png"):
        assert (measured / name).read_bytes().startswith(PNG)
    table = (measured / "stages.csv").read_text(encoding="utf-8").splitlines()
    assert table[0].startswith("stage,loop,model,duration_s,requests")
    assert len(table) == 1 + 2 * len(results["stages"])
    page = (measured / "report.html").read_text(encoding="utf-8")
    loads = re.findall(r"""(?:src|href)="(?!#)[^"]*"|url\((?!["']?#)[^)]*\)|@import""", page.replace("xlink:", ""))
    assert loads == []
    assert page.count("<svg") == 4
    assert "closed loop" in page
    assert all(row["model"] in page for stage in results["stages"] for row in stage["models"])
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_what_is_wrong_is_found_before_any_load(folder: Path, tiny_server: TritonServer, unused_url: str) -> None:
    out = folder / "out"
    with pytest.raises(ServerUnreachableError, match=unused_url):
        run(write_scenario(folder), unused_url, out)
    with pytest.raises(ModelUnavailableError, match="nothing"):
        run(write_scenario(folder, request={"model": "nothing"}), tiny_server.grpc_url, out)
    with pytest.raises(InvalidInputError, match="HOST:PORT"):
        run(write_scenario(folder), "http://127.0.0.1", out)
    with pytest.raises(ScenarioError, match="`duration_scale`"):
        run(write_scenario(folder), tiny_server.grpc_url, out, options=RunOptions(duration_scale=0))
    with pytest.raises(ScenarioError, match=r"`processes` must be in 1\.\.64, got 0"):
        run(write_scenario(folder), tiny_server.grpc_url, out, options=RunOptions(processes=0))
    with pytest.raises(ScenarioError, match="`--metrics-url`"):
        run(write_scenario(folder), tiny_server.grpc_url, out, options=RunOptions(metrics_url=unused_url))
    assert not out.exists()
    out.write_text("a file")
    with pytest.raises(ScenarioError, match="cannot make the folder"):
        run(write_scenario(folder), tiny_server.grpc_url, out)
    assert out.read_text() == "a file"


def test_refused_queries_are_counted_by_message(folder: Path, tiny_server: TritonServer) -> None:
    (folder / "queries.jsonl").write_text('{"query": "red lamp"}\n{"query": "\\u0000\\u0007"}\n')
    scenario = write_scenario(folder, stages=[{"users": 4, "duration_s": 2}], warm_up_s=0)
    results = run(scenario, tiny_server.grpc_url, folder / "out")
    (stage,) = results["stages"]
    assert 0.2 < stage["error_rate"] < 0.8
    ((message, count),) = stage["errors"].items()
    assert message.startswith("INVALID_ARGUMENT: ")
    assert count == stage["failed"]
    assert not results["slo"]["met"]
    # It has counted as many as were answered here.
    assert [note for note in stage["notes"] if note.startswith("the server ")] == []


def _answered(server: TritonServer) -> int:
    with Connection(server.grpc_url) as connection:
        return sum(entry.success.count for entry in connection.statistics("recommendation"))


def _start(scenario: Path, server: TritonServer, out: Path) -> subprocess.Popen[str]:
    """Returns a run of the command, once its first stage is measured and a request of the second is answered."""
    command = [sys.executable, "-m", "tritonpress_loadtests.cli", "run", str(scenario), "--out", str(out)]
    process = subprocess.Popen([*command, "--url", server.grpc_url], stdout=subprocess.PIPE, text=True)
    if process.stdout is None:
        raise ValueError("no pipe")
    assert process.stdout.readline().startswith("1 user: ")
    before = _answered(server)
    while _answered(server) == before:
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM], ids=lambda number: number.name
)
def test_an_interrupted_run_keeps_what_it_has(folder: Path, tiny_server: TritonServer, number: signal.Signals) -> None:
    stages = [{"users": 1, "duration_s": 0.5}, {"users": 2, "duration_s": 60}, {"users": 3, "duration_s": 60}]
    with _start(write_scenario(folder, stages=stages, warm_up_s=0), tiny_server, folder / "out") as process:
        process.send_signal(number)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted: this is what was measured until then" in out
    results = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["interrupted"] is True
    assert [stage["users"] for stage in results["stages"]] == [1, 2]
    assert 0 < results["stages"][1]["duration_s"] < 60
    assert results["stages"][1]["requests"] > 0
    assert (folder / "out" / "report.html").exists()


def test_a_run_that_is_interrupted_before_its_first_stage_writes_nothing(
    folder: Path, tiny_server: TritonServer
) -> None:
    out = folder / "out"
    command = [sys.executable, "-m", "tritonpress_loadtests.cli", "run", str(write_scenario(folder, warm_up_s=60))]
    command += ["--out", str(out), "--url", tiny_server.grpc_url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not psutil.Process(process.pid).children():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "tritonpress-load: interrupted before the first stage; nothing is written\n"
    assert list(out.iterdir()) == []


def test_the_load_ends_with_its_parent(folder: Path, tiny_server: TritonServer) -> None:
    stages = [{"users": 1, "duration_s": 0.3}, {"users": 2, "duration_s": 60}]
    with _start(write_scenario(folder, stages=stages, warm_up_s=0), tiny_server, folder / "out") as process:
        (child,) = psutil.Process(process.pid).children()
        process.kill()
        process.communicate()
    child.wait(timeout=60)
    assert not child.is_running()


def test_plain_locust_runs_the_same_users(folder: Path, tiny_server: TritonServer) -> None:
    entry = plain_locust(write_scenario(folder), tiny_server.grpc_url, users=3)
    assert entry["num_requests"] >= 3  # each user asks
    assert entry["num_failures"] == 0
