"""`tritonpress-load`: what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scenarios import write_scenario
from tritonpress_loadtests.cli import main
from tritonpress_server import TritonServer

SHORT = [{"users": 2, "duration_s": 1}]
CLOSING = re.compile(r"2 users: \d+\.\d s, 0 failed, p99 ")


def test_a_run_prints_its_tables_and_ends_with_the_verdict(
    folder: Path, tiny_server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(folder / "out"), "--url", tiny_server.grpc_url, "--duration-scale", "0.5"]
    assert main(["run", str(write_scenario(folder, stages=SHORT, warm_up_s=0)), *options]) == 0
    out = capsys.readouterr().out
    assert CLOSING.match(out)
    assert "answers/s" in out
    assert "recommendation_" in out
    assert str(folder / "out" / "report.html") in out

    missed = write_scenario(folder, stages=SHORT, warm_up_s=0, slo={"p99_ms": 0.001})
    (folder / "out" / "report.html").unlink()
    assert main(["run", str(missed), *options, "--results-only"]) == 1
    assert (folder / "out" / "results.json").exists() and not (folder / "out" / "report.html").exists()
    assert "limit missed: at 2 users p99 is" in capsys.readouterr().out


def test_a_generator_that_was_the_bottleneck_fails_the_run(
    folder: Path, tiny_server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = write_scenario(folder, stages=SHORT, warm_up_s=0, generator={"cpu_share": 1e-6})
    options = ["--out", str(folder / "out"), "--url", tiny_server.grpc_url, "--duration-scale", "0.5"]
    assert main(["run", str(scenario), *options, "--results-only"]) == 1
    out = capsys.readouterr().out
    assert "failed: the load generator was the bottleneck, so that the figures are its own" in out
    assert "limit missed" not in out


def test_a_terminal_shows_a_line_that_refreshes(folder: Path, tiny_server: TritonServer) -> None:
    scenario = write_scenario(folder, stages=[{"users": 2, "duration_s": 1.6}], warm_up_s=0)
    command = [sys.executable, "-m", "tritonpress_loadtests.cli", "run", str(scenario), "--results-only"]
    command += ["--out", str(folder / "out"), "--url", tiny_server.grpc_url]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        # The end of a terminal that nobody holds any more is an error.
        with contextlib.suppress(OSError):
            while part := os.read(ours, 4096):
                shown += part
        os.close(ours)
        assert process.wait(60) == 0
    refreshed, closing = CLOSING.split(shown.decode())
    *lines, last = refreshed.split("\r\x1b[K")
    assert last == ""  # the line is taken away before what stays
    assert any(re.fullmatch(r"2 users  \d+/2 s  [\d,]+ requests(  p50 [\d.]+ ms)?  0 failed", line) for line in lines)
    assert "answers/s" in closing


def test_input_at_fault_ends_with_2_and_one_line(
    folder: Path, tiny_server: TritonServer, unused_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(folder / "out")]
    cases = [
        (write_scenario(folder), unused_url, unused_url),
        (folder / "nowhere.yaml", unused_url, "cannot read scenario"),
    ]
    for scenario, url, words in cases:
        assert main(["run", str(scenario), *out, "--url", url]) == 2
        error = capsys.readouterr().err
        assert error.startswith("tritonpress-load: ")
        assert error.count("\n") == 1
        assert words in error
    assert main(["run", str(write_scenario(folder, usrs=1)), *out]) == 2
    assert "`usrs` is no key" in capsys.readouterr().err
    assert (
        main(["run", str(write_scenario(folder, request={"model": "nothing"})), *out, "--url", tiny_server.grpc_url])
        == 2
    )
    assert "model 'nothing'" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_load(
    folder: Path, tiny_server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nobody may make a file there, root neither.
    assert main(["run", str(write_scenario(folder)), "--out", "/proc", "--url", tiny_server.grpc_url]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("tritonpress-load: /proc must be a folder that can be written: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("in_the_way", "says"), [("report.html", "results.json there has all that was"), ("results.json", "kept nowhere")]
)
def test_what_cannot_be_written_behind_the_load_is_printed(
    folder: Path, tiny_server: TritonServer, capsys: pytest.CaptureFixture[str], in_the_way: str, says: str
) -> None:
    out = folder / "out"
    (out / in_the_way).mkdir(parents=True)
    scenario = write_scenario(folder, stages=SHORT, warm_up_s=0)
    command = ["run", str(scenario), "--out", str(out), "--url", tiny_server.grpc_url, "--duration-scale", "0.5"]
    assert main(command) == 2
    said = capsys.readouterr()
    assert CLOSING.match(said.out)
    assert "answers/s" in said.out
    assert says in said.err
    assert said.err.count("\n") == 1
    if in_the_way != "results.json":
        assert json.loads((out / "results.json").read_text(encoding="utf-8"))["stages"][0]["label"] == "2 users"


@pytest.mark.parametrize(
    ("course", "scale", "words"),
    [
        (
            {"stages": [{"rate_per_s": 1e6, "duration_s": 3600}]},
            1,
            "at most 50,000,000 requests, whose schedule fits into memory, got 3,600,000,000 of 1e+06/s for 3600 s",
        ),
        ({"stages": [{"rate_per_s": 1000, "duration_s": 60}]}, 1000, "got 60,000,000 of 1000/s for 60000 s"),
        (
            {"shape": {"breakpoint": {"from_per_s": 1, "to_per_s": 1e6, "duration_s": 60}}, "slo": {"p99_ms": 9}},
            1,
            "got 60,000,000 of to_per_s: 1e+06/s for 60 s; divide it into several stages, or lower the rate",
        ),
        (
            {
                "shape": {"recovery": {"base_per_s": 1, "peak_per_s": 1e6, "base_s": 9, "peak_s": 90}},
                "slo": {"p99_ms": 9},
            },
            1,
            "got 90,000,018 of spike: 1/s, 1e+06/s, 1/s for 108 s",
        ),
        (
            {"stages": [{"users": 1, "duration_s": 60}]},
            1e6,
            "at most 604800 s, got 6e+07 of 1 user with `duration_scale`",
        ),
    ],
)
def test_what_no_generator_can_hold_is_refused_before_anything_is_sent(
    folder: Path, unused_url: str, capsys: pytest.CaptureFixture[str], course: dict[str, Any], scale: float, words: str
) -> None:
    scenario = write_scenario(folder, **{"stages": None, **course})
    command = ["run", str(scenario), "--out", str(folder / "out"), "--url", unused_url]
    assert main([*command, f"--duration-scale={scale:g}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.parametrize(
    "arguments", [[], ["run"], ["run", "a.yaml"], ["run", "a.yaml", "--out", "b", "--duration-scale", "x"]]
)
def test_wrong_arguments_end_with_2_and_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_itself_is_not_patched_for_gevent() -> None:
    program = (
        "import sys, tritonpress_loadtests.cli; print([name for name in ('gevent', 'locust') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
