"""An open loop against the real server: by the schedule, without loss, and honest about a server that stands still."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from at_once import AT_ONCE
from noop_model import write_noop
from scenarios import write_noop_scenario as scenario
from tritonpress_loadtests.cli import main
from tritonpress_loadtests.run import RunOptions, run
from tritonpress_server import TritonServer


@pytest.fixture(scope="module")
def noop_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of a model that does nothing."""
    with TritonServer(write_noop(tmp_path_factory.mktemp("noop")), settings=AT_ONCE) as server:
        yield server


def test_both_loops_come_from_one_file_and_every_request_is_sent(tmp_path: Path, noop_server: TritonServer) -> None:
    stages = [{"users": 2, "duration_s": 1}, {"rate_per_s": 150, "arrivals": "constant", "duration_s": 2}]
    path = scenario(tmp_path, stages=stages)
    options = RunOptions(processes=2, metrics_url=noop_server.metrics_url)
    psutil.Process(noop_server.pid).cpu_affinity([max(os.sched_getaffinity(0))])
    results = run(path, noop_server.grpc_url, tmp_path / "out", options=options)
    closed, opened = results["stages"]
    assert (closed["loop"], opened["loop"]) == ("closed", "open")
    assert opened["requests"] == 300
    assert opened["failed"] == 0
    assert opened["offered_per_s"] == pytest.approx(150)
    assert opened["generator"]["processes"] == 2
    assert opened["generator"]["start_lag_ms"]["max"] >= 0
    (row,) = opened["models"]
    assert row["answered"] == 300
    assert opened["server"]["metrics"]["noop"]["answered"] == 300
    assert results["processes"] == 2
    assert results["machine"]["cores"] == 1  # the server's, not the generator's
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "An open loop" in page
    assert "A closed loop" in page


def test_the_limit_in_flight_is_reported_and_leaves_nothing_out(tmp_path: Path) -> None:
    repository = write_noop(tmp_path / "slow", delay_s=0.05, max_batch_size=1)
    stages = [{"rate_per_s": 60, "arrivals": "constant", "duration_s": 2}]
    path = scenario(tmp_path, stages=stages, max_in_flight=2, warm_up_s=0, timeout_s=20)
    with TritonServer(repository, settings=AT_ONCE) as server:
        (stage,) = run(path, server.grpc_url, tmp_path / "out")["stages"]
    assert stage["requests"] == 120
    assert stage["most_in_flight"] == 2
    assert stage["limit_hits"] > 50
    # 20/s are served: the last of 120 requests has waited for 4 s behind the 2 s in which they were due.
    assert stage["latency_ms"]["max"] > 3000
    assert any("`max_in_flight`" in note for note in stage["notes"])


@pytest.mark.slow
def test_a_server_that_stands_still_shows_as_arithmetic_says_and_a_closed_loop_hides_it(
    tmp_path: Path, noop_server: TritonServer
) -> None:
    # Of 20 s the server stands still for 2: a request that is due u s into the pause waits for 2 − u s, so that a share
    # of (2 − x) / 20 of all waits longer than x, and x = 1.8 s at p99.
    stages = [
        {"users": 1, "duration_s": 20},
        {"rate_per_s": 100, "arrivals": "constant", "duration_s": 20},
    ]
    path = scenario(tmp_path, stages=stages, timeout_s=10)

    def pause(event: dict[str, Any]) -> None:
        if (
            event["event"] == "tick"
            and not event["warm_up"]
            and event["elapsed_s"] > 8
            and event["label"] not in paused
        ):
            paused.add(event["label"])
            threading.Thread(target=stand_still).start()

    def stand_still() -> None:
        os.kill(noop_server.pid, signal.SIGSTOP)
        try:
            time.sleep(2)
        finally:
            os.kill(noop_server.pid, signal.SIGCONT)

    paused: set[str] = set()
    results = run(path, noop_server.grpc_url, tmp_path / "out", progress=pause)
    closed, opened = results["stages"]
    assert opened["requests"] == 2000
    assert opened["latency_ms"]["p99"] == pytest.approx(1800, abs=150)
    assert opened["latency_ms"]["p90"] < 500
    # One user meets the pause once: of thousands of requests a single one is slow.
    assert closed["latency_ms"]["max"] == pytest.approx(2000, abs=300)
    assert closed["latency_ms"]["p99"] < 200
    assert json.loads((tmp_path / "out" / "results.json").read_text())["stages"][1]["stable"] is False


@pytest.mark.slow
def test_a_rate_that_the_generator_cannot_offer_ends_the_stage_and_fails(
    tmp_path: Path, noop_server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [{"rate_per_s": 100_000, "arrivals": "constant", "duration_s": 1}]
    path = scenario(tmp_path, stages=stages, warm_up_s=0, max_in_flight=1_000_000, slo={"error_rate": 1})
    assert main(["run", str(path), "--out", str(tmp_path / "out"), "--url", noop_server.grpc_url]) == 1
    out = capsys.readouterr().out
    (stage,) = json.loads((tmp_path / "out" / "results.json").read_text())["stages"]
    # It gave up once it was 10 s late, having sent what it could in as long.
    assert 0 < stage["requests"] < 100_000
    assert stage["offered_per_s"] < stage["requests"] / 10
    said = f"offered {stage['offered_per_s']:.0f} of 100000/s: use more --processes, or another machine"
    assert stage["generator"]["bottleneck"] == said
    assert f"the load generator was the bottleneck: it {said}" in out
    assert stage["binding"] == "the load generator"
