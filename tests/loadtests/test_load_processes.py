"""The processes that make the load by themselves, as their conductor speaks to them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scenarios import write_scenario
from tritonpress_loadtests.scenario import load_scenario
from tritonpress_loadtests.stages import Stage
from tritonpress_server import TritonServer


def measured(folder: Path, url: str, stage: Stage, *told: dict[str, Any]) -> dict[str, Any]:
    """Returns what a process reports of a stage, after it was told all that at once."""
    scenario = write_scenario(folder)
    module = "open_loop" if stage.is_open else "locust_process"
    order = {"number": 0, "sha256": load_scenario(scenario).sha256, "process": 0, "of": 1}
    lines = [{"stage": stage.model_dump(exclude_unset=True), **order}, *told]
    command = [sys.executable, "-m", f"tritonpress_loadtests.{module}", str(scenario), "--url", url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("".join(f"{json.dumps(line)}\n" for line in lines))
        process.stdin.flush()
        # The end of its input would end the stage.
        event: dict[str, Any] = next(event for event in map(json.loads, process.stdout) if event["event"] == "stage")
        process.stdin.close()
        assert process.wait(60) == 0
    return event


def test_a_process_that_begins_late_holds_its_load_for_as_long(folder: Path, tiny_server: TritonServer) -> None:
    stage = Stage(users=2, duration_s=0.3)
    event = measured(folder, tiny_server.grpc_url, stage, {"start_s": time.monotonic() - 100})
    assert 0.3 <= event["duration_s"] < 60
    assert sum(event["words_up_to"].values()) >= 2
    assert event["began_late_s"] >= 100


@pytest.mark.parametrize("load", [{"users": 50}, {"rate_per_s": 5.0}], ids=["closed", "open"])
def test_a_wish_to_stop_that_comes_with_the_start_is_heard(
    load: dict[str, Any], folder: Path, tiny_server: TritonServer
) -> None:
    stage = Stage(**load, duration_s=60)
    event = measured(folder, tiny_server.grpc_url, stage, {"start_s": time.monotonic()}, {"stop": True})
    assert event["duration_s"] < 60
