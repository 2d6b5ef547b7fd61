"""The shapes of a load, each once against a server whose capacity is known: 20 requests/s, one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from at_once import AT_ONCE
from noop_model import write_noop
from scenarios import write_noop_scenario
from tritonpress_loadtests.cli import summary
from tritonpress_loadtests.results import by_load
from tritonpress_loadtests.run import RunOptions, run
from tritonpress_server import TritonServer

CAPACITY_PER_S = 20


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that takes 50 ms for each request, and none beside it."""
    repository = write_noop(tmp_path_factory.mktemp("slow"), delay_s=1 / CAPACITY_PER_S, max_batch_size=1)
    with TritonServer(repository, settings=AT_ONCE) as server:
        yield server


def loaded(
    folder: Path, server: TritonServer, shape: dict[str, Any], *, report: bool = False, **changes: Any
) -> dict[str, Any]:
    """Returns the results of a shape."""
    scenario = write_noop_scenario(folder, stages=None, shape=shape, **changes)
    return run(scenario, server.grpc_url, folder / "out", options=RunOptions(results_only=not report))


def test_what_a_peak_leaves_waiting_is_in_the_recovery(tmp_path: Path, slow_server: TritonServer) -> None:
    recovery = {"base_per_s": 5, "peak_per_s": 50, "base_s": 3.5, "peak_s": 1}
    limit_s = 0.5
    results = loaded(tmp_path, slow_server, {"recovery": recovery}, report=True, slo={"p99_ms": 1e3 * limit_s})
    (stage,) = results["stages"]
    before, peak, after = stage["pieces"]
    assert [piece["label"] for piece in stage["pieces"]] == ["5/s from 0 s", "50/s from 3.5 s", "5/s from 4.5 s"]
    # What was due in the peak and could not be served in it waits behind it, and the queue falls by 20 − 5 a second.
    waiting = peak["requests"] - CAPACITY_PER_S * recovery["peak_s"]
    least_s = (waiting - CAPACITY_PER_S * limit_s) / (CAPACITY_PER_S - recovery["base_per_s"])
    assert least_s > 0.5, "the draw has too small a peak"
    width_s = stage["windows"]["width_s"]
    # A last window that is slow by chance leaves the recovery unfound.
    recovered_after_s, misses = results["recovery"]["recovered_after_s"], results["slo"]["misses"]
    unfound = ["after the peak the limit was not kept again within the stage"] if recovered_after_s is None else []
    assert recovered_after_s is None or recovered_after_s >= least_s - 2 * width_s
    assert after["latency_ms"]["max"] > 1e3 * limit_s > before["latency_ms"]["p50"]
    # Only what came before the peak is held to the limit.
    assert [miss for miss in misses if "from 0 s" not in miss] == unfound
    assert any(line.startswith("  50/s from 3.5 s") for line in summary(results))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<td>50/s from 3.5 s</td>" in page
    assert re.search(r"highest throughput, at (50/s from 3.5|5/s from 4.5) s</small>", page)
    assert [load["offered_per_s"] for load in by_load(results)] == [5, 50, 5]


def test_a_spike_is_judged_part_by_part(tmp_path: Path, slow_server: TritonServer) -> None:
    spike = {"base_per_s": 10, "peak_per_s": 60, "base_s": 1, "peak_s": 1}
    results = loaded(tmp_path, slow_server, {"spike": spike}, slo={"p99_ms": 450})
    (stage,) = results["stages"]
    assert stage["label"] == "spike: 10/s, 60/s, 10/s"
    assert stage["requests"] >= sum(piece["requests"] for piece in stage["pieces"]) > 0
    assert any(miss.startswith("at 60/s from 1 s p99 is") for miss in results["slo"]["misses"])
    assert results["recovery"] is None


@pytest.mark.slow
def test_steps_and_soaks_have_a_stage_a_part(tmp_path: Path, slow_server: TritonServer) -> None:
    step = loaded(tmp_path, slow_server, {"step": {"users": [1, 2], "rates_per_s": [10], "duration_s": 0.6}})
    assert [stage["label"] for stage in step["stages"]] == ["1 user", "2 users", "10/s"]
    soak = loaded(tmp_path, slow_server, {"soak": {"rate_per_s": 10, "duration_s": 1.2, "parts": 2}})
    assert [stage["label"] for stage in soak["stages"]] == ["part 1: 10/s", "part 2: 10/s"]
    for stage in [*step["stages"], *soak["stages"]]:
        assert stage["requests"] > stage["failed"] == 0
        assert stage["pieces"] == []


@pytest.mark.slow
def test_a_search_ends_below_what_the_server_can_do(tmp_path: Path, slow_server: TritonServer) -> None:
    search = {"from_per_s": 5, "to_per_s": 160, "duration_s": 1, "precision": 0.5, "arrivals": "constant"}
    found = loaded(tmp_path, slow_server, {"breakpoint": search}, slo={"p99_ms": 400})["breakpoint"]
    # At twice its capacity the last request that is due has waited for as long as the stage was.
    assert found["missed_per_s"] is not None
    assert found["missed_per_s"] <= 2 * CAPACITY_PER_S
    assert found["kept_per_s"] is None or found["kept_per_s"] < found["missed_per_s"]
