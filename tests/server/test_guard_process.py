"""The process that guards tritonserver: it ends it and cleans up, whatever becomes of those around it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tritonpress_server import ServerStartError, TritonServer, guard

# Its line may never come; it ends before the tests would miss it.
SLOW_GUARD = """
import os, sys, time
from pathlib import Path

Path(sys.argv[2], "pid.new").write_text(str(os.getpid()))
os.rename(Path(sys.argv[2], "pid.new"), STARTED)
time.sleep(90)
"""
INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
from tritonpress_server import TritonServer, guard, launch

repository, log, guard.__file__, started = sys.argv[1:]
main_thread = threading.get_ident()

def interrupt():
    # Once it waits for the guard's line.
    while not Path(started).exists() or sys._current_frames()[main_thread].f_code.co_filename != launch.__file__:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=interrupt, daemon=True).start()
try:
    TritonServer(repository, log_path=log).start()
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """The private folder of a run."""
    folder = tmp_path / "private"
    folder.mkdir()
    return folder


def guarding(private: Path, *command: str) -> list[str]:
    """The command line that guards a command of this process."""
    return [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), str(private), *command]


def test_it_tells_the_status_where_children_were_not_waited_for(private: Path) -> None:
    # What ignores SIGCHLD hands that down.
    command = ["env", "--ignore-signal=CHLD", *guarding(private, "/bin/sh", "-c", "exit 3")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert not private.exists()


def test_it_ends_its_child_where_nobody_hears_the_first_line(private: Path) -> None:
    hears, says = os.pipe()
    os.close(hears)
    try:
        done = subprocess.run(
            guarding(private, "/bin/sleep", "60"), stdout=says, stderr=subprocess.PIPE, timeout=60, check=False
        )
    finally:
        os.close(says)
    assert (done.returncode, done.stderr) == (128 + signal.SIGKILL, b"")
    assert not private.exists()


def test_it_kills_its_child_at_an_order(private: Path) -> None:
    with subprocess.Popen(guarding(private, "/bin/sleep", "60"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(guard.KILL)
        assert process.wait(60) == 128 + signal.SIGKILL
    assert not Path(f"/proc/{child}").exists()
    assert not private.exists()


def test_an_interrupt_while_the_guard_starts_leaves_nothing_running(repository: Path, tmp_path: Path) -> None:
    slow, started = tmp_path / "slow_guard.py", tmp_path / "started"
    slow.write_text(SLOW_GUARD.replace("STARTED", repr(str(started))))
    arguments = map(str, (repository, tmp_path / "log", slow, started))
    command = [sys.executable, "-c", INTERRUPTED, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "interrupted\n"
        assert not Path(f"/proc/{started.read_text()}").exists()


def test_a_server_that_has_ended_by_itself_has_no_pid(repository: Path, tmp_path: Path) -> None:
    with TritonServer(repository, log_path=tmp_path / "log") as server:
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait() == 128 + signal.SIGKILL
        assert server.pid == 0
        with pytest.raises(ServerStartError, match=r"has ended by itself; stop\(\) it"):
            server.start()
