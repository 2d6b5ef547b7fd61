"""Load from several hosts, here one with another clock: what is behind a command that carries both ways."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scenarios import write_scenario
from tritonpress_loadtests.errors import LoadGeneratorError, ScenarioError
from tritonpress_loadtests.run import RunOptions, run
from tritonpress_server import TritonServer

_AHEAD_S = 5_000


@pytest.fixture
def python3(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other host has our packages."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def other_clock() -> str:
    """Returns the command of a host whose monotonic clock is far ahead, or skips."""
    command = ["unshare", "--time", "--monotonic", str(_AHEAD_S), "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs a time namespace: root, Linux 5.6")
    return " ".join(command)


@pytest.mark.usefixtures("python3")
@pytest.mark.parametrize(
    "stage",
    [
        {"rate_per_s": 40, "duration_s": 2, "arrivals": "constant"},
        pytest.param({"users": 4, "duration_s": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_host_with_another_clock_begins_with_the_others(
    folder: Path, tiny_server: TritonServer, stage: dict[str, object]
) -> None:
    scenario = write_scenario(folder, stages=[stage], warm_up_s=0)
    options = RunOptions(via=(other_clock(),))
    results = run(scenario, tiny_server.grpc_url, folder / "out", options=options)
    (measured,) = results["stages"]
    assert (results["processes"], measured["generator"]["processes"]) == (2, 2)
    assert measured["failed"] == 0
    assert measured["duration_s"] < 4
    if "rate_per_s" in stage:
        # Each sends its half of the schedule, neither of them hours late.
        assert measured["requests"] == 80
        assert measured["latency_ms"]["max"] < 5_000
        assert measured["generator"]["start_lag_ms"]["max"] < 5_000


@pytest.mark.usefixtures("python3")
def test_the_load_can_be_made_by_other_hosts_alone(folder: Path, tiny_server: TritonServer) -> None:
    scenario = write_scenario(folder, stages=[{"rate_per_s": 20, "duration_s": 1}], warm_up_s=0)
    results = run(scenario, tiny_server.grpc_url, folder / "out", options=RunOptions(processes=0, via=("sh -c",)))
    assert results["stages"][0]["generator"]["processes"] == 1
    assert "--via='sh -c'" in results["command"] or "'--via=sh -c'" in results["command"]


@pytest.mark.usefixtures("python3")
def test_another_scenario_on_the_other_host_is_refused(folder: Path, tiny_server: TritonServer, tmp_path: Path) -> None:
    scenario = write_scenario(folder, stages=[{"rate_per_s": 20, "duration_s": 1}], warm_up_s=0)
    text = scenario.read_text(encoding="utf-8")
    # What starts the other process changes the file that it is about to read.
    change = tmp_path / "change"
    change.write_text(f'#!/bin/sh\necho "seed: 99" >> {scenario}\nexec sh -c "$1"\n', encoding="utf-8")
    change.chmod(0o755)
    with pytest.raises(LoadGeneratorError, match=r"or its queries differ from those of the host that leads"):
        run(scenario, tiny_server.grpc_url, folder / "out", options=RunOptions(processes=0, via=(str(change),)))
    assert text in scenario.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (RunOptions(processes=0), "`processes` must be in 1..64, got 0"),
        (RunOptions(via=("",)), "`via` must be a command that is found here, got ''"),
        (RunOptions(via=("no-such-command x",)), "got 'no-such-command x'"),
    ],
)
def test_wrong_hosts_are_refused(folder: Path, options: RunOptions, says: str) -> None:
    with pytest.raises(ScenarioError, match=says):
        run(write_scenario(folder), "127.0.0.1:1", folder / "out", options=options)


@pytest.mark.usefixtures("python3")
@pytest.mark.parametrize("said", ["Welcome to load2, the time is 10:45", "17", ""])
def test_what_a_login_prints_is_told_in_place_of_waiting_for_ever(
    folder: Path, tiny_server: TritonServer, tmp_path: Path, said: str
) -> None:
    scenario = write_scenario(folder, stages=[{"rate_per_s": 20, "duration_s": 1}], warm_up_s=0)
    login = tmp_path / "login"
    login.write_text(f'#!/bin/sh\necho "{said}"\nexec sh -c "$1"\n', encoding="utf-8")
    login.chmod(0o755)
    told = re.escape(f"the load generator said {said or 'an empty line'!r}, which is no event; what starts it")
    with pytest.raises(LoadGeneratorError, match=told):
        run(scenario, tiny_server.grpc_url, folder / "out", options=RunOptions(via=(str(login),)))
