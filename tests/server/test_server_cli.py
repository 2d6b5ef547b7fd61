"""`tritonpress-serve` as a process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import write_model
from unprivileged import NOT_ALL

# A shell that starts the tests in the background ignores SIGINT, and its children with it.
COMMAND = ["env", "--default-signal=INT", sys.executable, "-m", "tritonpress_server.cli"]
FREE_PORTS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_it_is_told_to_stop(repository: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [*COMMAND, str(repository), *FREE_PORTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving add_one (version 1)  grpc 127.0.0.1:")
        assert process.stdout.readline() == "ready; Ctrl-C drains and stops\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "stopped\n", "")


def test_drains_as_well_where_nobody_reads_any_more(repository: Path) -> None:
    command = [*COMMAND, str(repository), *FREE_PORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        while not process.stdout.readline().startswith("ready"):
            assert process.poll() is None
        process.stdout.close()
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "")


def test_triton_that_ends_by_itself_gives_status_1(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with subprocess.Popen(
        [*COMMAND, str(repository), *FREE_PORTS, "--log", str(log)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while "ready" not in process.stdout.readline():
            pass
        (guard,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (server,) = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
        subprocess.run(["kill", "-9", server], check=True)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith("tritonpress-serve: Triton ended by itself with status 137; its log ends:\n")


def test_bad_input_gives_status_2_and_one_line(tmp_path: Path) -> None:
    write_model(tmp_path / "repo", "broken", b"not a graph")
    log = ["--log", str(tmp_path / "log")]
    for arguments, message in (
        ([str(tmp_path / "repo"), *FREE_PORTS, *log], "tritonpress-serve: model 'broken' failed to load: "),
        ([str(tmp_path / "nowhere"), *FREE_PORTS], "tritonpress-serve: model repository "),
        ([str(tmp_path / "repo"), *FREE_PORTS, "--model", "other"], "tritonpress-serve: model 'other' is not in "),
        (
            [str(tmp_path / "repo"), "--model", "broken", "--model-control", "poll"],
            "tritonpress-serve: models go with model_control explicit, got poll, by which Triton loads all there is",
        ),
    ):
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(message)
        assert done.stderr.count("\n") == 1
    done = subprocess.run([*COMMAND, "x", "--grpc-port", "70000"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "argument --grpc-port: must be in [1, 65535], or 0 for a free port, got '70000'" in done.stderr


@pytest.mark.parametrize("closed", [".", "add_one/config.pbtxt"])
@pytest.mark.parametrize("chosen", [[], ["--model", "add_one"]])
def test_a_repository_that_may_not_be_read_gives_status_2_and_its_remedy(
    repository: Path, closed: str, chosen: list[str]
) -> None:
    place = repository / closed
    mode = place.stat().st_mode
    place.chmod(0)
    command = [*NOT_ALL, *COMMAND, str(repository), *FREE_PORTS, *chosen]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        place.chmod(mode)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"tritonpress-serve: model repository '{repository}' must be readable by the user who "
    )
    assert f", {place} is not: Permission denied; allow uid {os.geteuid()} to read it\n" in done.stderr
    assert done.stderr.count("\n") == 1
