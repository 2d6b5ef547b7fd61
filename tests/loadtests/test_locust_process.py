"""The process of a closed loop by itself, as its conductor speaks to it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from scenarios import write_scenario
from tritonpress_loadtests.scenario import load_scenario
from tritonpress_loadtests.stages import Stage
from tritonpress_server import TritonServer


def test_a_process_that_begins_late_holds_its_load_for_as_long(folder: Path, tiny_server: TritonServer) -> None:
    scenario = write_scenario(folder)
    stage = Stage(users=2, duration_s=0.3).model_dump(exclude_unset=True)
    order = {"stage": stage, "number": 0, "sha256": load_scenario(scenario).sha256, "process": 0, "of": 1}
    started = {"start_s": time.monotonic() - 100}
    command = [sys.executable, "-m", "tritonpress_loadtests.locust_process", str(scenario), "--url"]
    with subprocess.Popen(
        [*command, tiny_server.grpc_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{json.dumps(order)}\n{json.dumps(started)}\n")
        process.stdin.flush()
        # The end of its input would end the stage.
        measured = next(event for event in map(json.loads, process.stdout) if event["event"] == "stage")
        process.stdin.close()
        assert process.wait(60) == 0
    assert 0.3 <= measured["duration_s"] < 60
    assert sum(measured["words_up_to"].values()) >= stage["users"]
    assert measured["began_late_s"] >= 100
