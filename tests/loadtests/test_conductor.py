"""A wish to end, at a moment when no process can hear it, or is just being spoken to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scenarios import write_scenario
from tritonpress_loadtests import conductor as conductor_module
from tritonpress_loadtests.conductor import Conductor
from tritonpress_loadtests.errors import LoadGeneratorError
from tritonpress_loadtests.scenario import load_scenario
from tritonpress_loadtests.stages import Stage

INTERRUPTS_ITSELF = """
import fcntl, os, signal, struct, subprocess, sys, termios, threading, time
from pathlib import Path
from tritonpress_loadtests.conductor import Conductor, _Generator
from tritonpress_loadtests.scenario import load_scenario

def interrupt():
    stdin = process.stdin.fileno()
    while struct.unpack("i", fcntl.ioctl(stdin, termios.FIONREAD, bytes(4)))[0] < fcntl.fcntl(stdin, F_GETPIPE_SZ):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    while not conductor.interrupted:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

F_GETPIPE_SZ = 1032
conductor = Conductor(load_scenario(Path(sys.argv[1])), "127.0.0.1:1")
with subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE, text=True) as process:
    generator = _Generator(process, 0, Path())
    conductor._started[True] = [generator]
    try:
        with conductor.interrupted_by_signals():
            threading.Thread(target=interrupt, daemon=True).start()
            generator.say({"too much": "for its pipe" * 100_000})
    finally:
        process.kill()
"""
"""In a process of its own, which what it sends to itself may end."""


@pytest.mark.parametrize("moment", ["before the process is started", "before it has its order"])
def test_a_wish_to_end_that_comes_before_the_order_is_kept(
    moment: str, folder: Path, unused_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = conductor_module._Generator.say

    def interrupted_say(generator: conductor_module._Generator, order: dict[str, Any]) -> None:
        if "stage" in order:
            conductor.interrupt()
        say(generator, order)

    with Conductor(load_scenario(write_scenario(folder)), unused_url) as conductor:
        if moment == "before the process is started":
            conductor.interrupt()
        else:
            monkeypatch.setattr(conductor_module._Generator, "say", interrupted_say)
        with pytest.raises(LoadGeneratorError, match="interrupted"):
            conductor.run(Stage(users=1, duration_s=0.2), 0, progress=lambda event: None, before=lambda: None)


def test_a_wish_to_end_while_an_order_waits_for_room_is_no_error(folder: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTS_ITSELF, str(write_scenario(folder))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, start_new_session=True)
    assert (done.returncode, done.stderr) == (0, "")
