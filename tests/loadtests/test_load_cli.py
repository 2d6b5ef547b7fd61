"""`tritonpress-load`: what it prints, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scenarios import write_scenario
from tritonpress_loadtests.cli import main
from tritonpress_server import TritonServer

SHORT = [{"users": 2, "duration_s": 1}]


def test_a_run_prints_its_tables_and_ends_with_the_verdict(
    folder: Path, tiny_server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(folder / "out"), "--url", tiny_server.grpc_url, "--duration-scale", "0.5"]
    assert main(["run", str(write_scenario(folder, stages=SHORT, warm_up_s=0)), *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 users: 0.5 s, 0 failed, p99 ")
    assert "answers/s" in out
    assert "recommendation_" in out
    assert str(folder / "out" / "report.html") in out

    missed = write_scenario(folder, stages=SHORT, warm_up_s=0, slo={"p99_ms": 0.001})
    (folder / "out" / "report.html").unlink()
    assert main(["run", str(missed), *options, "--results-only"]) == 1
    assert (folder / "out" / "results.json").exists() and not (folder / "out" / "report.html").exists()
    assert "limit missed: at 2 users p99 is" in capsys.readouterr().out


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
