"""Work in a folder that is killed at a touch of the file system, each in turn, until it is let through."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

_KILLED = """
import os, signal, sys
def killed_in(folder, left):
    def counted(event, arguments):
        nonlocal left
        # Every change of a name in the folder passes here: folders made, files opened, renamed and removed.
        if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "open") and folder in str(arguments[:2]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(counted)
for allowed in range(0, 4000, int(sys.argv[2])):
    victim = f"{sys.argv[1]}-{allowed:04}"
    prepare(victim)
    child = os.fork()  # of a process that has all it needs imported: a new one takes seconds
    if not child:
        killed_in(victim, allowed)
        os._exit(work(victim) or 0)
    _, status = os.waitpid(child, 0)
    print("victim", victim, os.waitstatus_to_exitcode(status), flush=True)
    if os.WIFEXITED(status):
        break
"""


def victims_of(program: str, folder: Path, *arguments: str, step: int = 1) -> list[Path]:
    """Returns the folders in which work was killed, and last the one in which it was done.

    Args:
        program: Python that defines `prepare(victim)`, which makes a folder, and `work(victim)`, which is to survive
            and returns its exit status; both get the folder's path. `sys.argv[3:]` are the arguments.
        folder: Its name, with a number behind it, is the victims'.
        arguments: For the program.
        step: By how many touches more the next victim lives.
    """
    command = [sys.executable, "-c", program + _KILLED, str(folder), str(step), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("victim ") for line in done.stdout.splitlines() if line.startswith("victim ")]
    found = [line.rpartition(" ") for line in lines]
    assert [int(status) for *_, status in found] == [-signal.SIGKILL] * (len(found) - 1) + [0], done.stderr
    return [Path(victim) for victim, *_ in found]
