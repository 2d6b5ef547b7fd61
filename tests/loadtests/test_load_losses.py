"""What is lost in the middle of a run, the server or a process that makes the load, loses no stage that is finished."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from at_once import AT_ONCE
from noop_model import write_noop
from scenarios import write_noop_scenario
from tritonpress_client import connecting
from tritonpress_loadtests.cli import summary
from tritonpress_loadtests.run import RunOptions, run
from tritonpress_server import TritonServer

STAGES = [{"users": 1, "duration_s": 0.5}, {"rate_per_s": 20, "duration_s": 4}]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TritonServer]:
    """A server of a model that does nothing, which a test may kill."""
    with TritonServer(write_noop(tmp_path / "repository"), settings=AT_ONCE) as started:
        yield started


def in_second_stage(folder: Path, server: TritonServer) -> subprocess.Popen[str]:
    """Returns a run of the command whose first stage is measured."""
    scenario = write_noop_scenario(folder, stages=STAGES, warm_up_s=0)
    command = [sys.executable, "-m", "tritonpress_loadtests.cli", "run", str(scenario), "--out", str(folder / "out")]
    command += ["--url", server.grpc_url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("1 user: ")
    return process


def results_of(folder: Path) -> dict[str, Any]:
    """Returns what the run has written."""
    results: dict[str, Any] = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    return results


def test_a_server_that_dies_is_in_the_figures(tmp_path: Path, server: TritonServer) -> None:
    def kill(event: dict[str, Any]) -> None:
        # Once a request of the stage is answered.
        if event["event"] != "tick" or event["label"] != "20/s":
            return
        if event["requests"] > event["failed"] and not killed:
            killed.append(server.pid)
            os.kill(server.pid, signal.SIGKILL)
        elif killed and event["failed"] and not ended:
            ended.append(event["failed"])
            os.kill(os.getpid(), signal.SIGTERM)  # ends the run in good order: the stage would go on for a minute

    killed: list[int] = []
    ended: list[int] = []
    stages = [STAGES[0], STAGES[1] | {"duration_s": 60}]
    scenario = write_noop_scenario(tmp_path, stages=stages, warm_up_s=0)
    options = RunOptions(metrics_url=server.metrics_url)
    run(scenario, server.grpc_url, tmp_path / "out", options=options, progress=kill)
    assert killed
    results = results_of(tmp_path)
    first, second = results["stages"]
    assert first["requests"] > first["failed"] == 0
    assert first["models"][0]["answered"] == first["requests"]
    assert second["requests"] > second["failed"] > 0
    assert second["models"] == []
    assert second["server"]["cpu_cores"] is None
    assert second["server"]["metrics"] == {}
    assert second["binding"] == "unknown: Triton's statistics tell of no request"
    told = "\n".join(summary(results))
    for words in ("Triton's statistics are not there: no Triton server answers", "`--metrics-url`"):
        assert any(words in note for note in second["notes"])
        assert words in told
    assert not results["slo"]["met"]
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("loop", ["open", "closed"])
def test_requests_whose_token_cannot_be_read_have_failed(tmp_path: Path, server: TritonServer, loop: str) -> None:
    # A process reads the token when it first sends, so that the stage before needs one of the other loop.
    users = [{"users": 2, "duration_s": 0.5}, {"users": 3, "duration_s": 0.5}]
    rates = [{"rate_per_s": 20, "arrivals": "constant", "duration_s": 1}] * 2
    stages = [*users[:1], *rates] if loop == "open" else [*rates[:1], *users]
    token_file = tmp_path / "token"
    token_file.write_text("secret")

    def lose(event: dict[str, Any]) -> None:
        if event["event"] == "stage":
            done.append(event)
            if len(done) == 1:
                token_file.unlink()
            else:
                token_file.write_text("secret")

    done: list[dict[str, Any]] = []
    parser = argparse.ArgumentParser()
    connecting.add_security_arguments(parser)
    arguments = parser.parse_args([f"--token-file={token_file}"])
    options = RunOptions(
        results_only=True, connection=connecting.options(arguments), security=connecting.security_words(arguments)
    )
    scenario = write_noop_scenario(tmp_path, stages=stages, warm_up_s=0)
    first, lost, last = run(scenario, server.grpc_url, tmp_path / "out", options=options, progress=lose)["stages"]
    assert lost["loop"] == loop
    assert lost["requests"] == lost["failed"] > 0
    assert lost["errors"] == {f"InvalidInputError: cannot read {token_file}: No such file or directory": lost["failed"]}
    if loop == "open":
        assert lost["requests"] == 20
    for stage in (first, last):
        assert stage["requests"] > stage["failed"] == 0
        assert stage["models"][0]["answered"] == stage["requests"]


def test_a_reader_that_has_had_enough_loses_nothing(tmp_path: Path, server: TritonServer) -> None:
    with in_second_stage(tmp_path, server) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert (process.wait(60), said) == (0, "")
    assert [stage["label"] for stage in results_of(tmp_path)["stages"]] == ["1 user", "20/s"]
    assert (tmp_path / "out" / "report.html").exists()


TOLD_TO_END_WHILE_IT_WRITES = """
import os, signal, sys
from pathlib import Path
import tritonpress_loadtests.run as module

scenario, out, url = sys.argv[1:]
write_results = module.write_results

def told_to_end(results, folder):
    os.kill(os.getpid(), signal.SIGTERM)
    write_results(results, folder)

module.write_results = told_to_end
try:
    module.run(Path(scenario), url, Path(out), options=module.RunOptions(results_only=True))
except KeyboardInterrupt:
    print("told to end")
"""


def test_a_signal_behind_the_last_stage_loses_nothing(tmp_path: Path, server: TritonServer) -> None:
    scenario = write_noop_scenario(tmp_path, stages=STAGES[:1], warm_up_s=0)
    arguments = map(str, (scenario, tmp_path / "out", server.grpc_url))
    command = [sys.executable, "-c", TOLD_TO_END_WHILE_IT_WRITES, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "told to end\n"), done.stderr
    results = results_of(tmp_path)
    assert results["interrupted"] is False
    assert [stage["label"] for stage in results["stages"]] == ["1 user"]


@pytest.mark.slow
def test_a_generator_that_dies_leaves_what_was_measured(tmp_path: Path, server: TritonServer) -> None:
    with in_second_stage(tmp_path, server) as process:
        children = psutil.Process(process.pid).children()
        while not (opened := [child for child in children if "tritonpress_loadtests.open_loop" in child.cmdline()]):
            children = psutil.Process(process.pid).children()
        opened[0].kill()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    results = results_of(tmp_path)
    assert [stage["label"] for stage in results["stages"]] == ["1 user"]
    assert results["failure"] == "the load generator ended with status -9: it said nothing"
    assert f"failed: {results['failure']}; this is what was measured until then" in out
    assert "The run has failed" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
