"""Runs tritonserver as a child and ends it, and its stubs, when the process that started this one is gone.

Run as a script: `guard.py PARENT_PID PRIVATE_FOLDER COMMAND...`. Its first line on stdout is the child's
pid; its exit status is the child's, or 128 + the signal that ended it. SIGTERM and SIGINT are passed on; at `KILL` the
child is killed.

It stands between the two because Linux delivers PR_SET_PDEATHSIG when the *thread* that forked ends: a server started
from a worker thread would die with that thread. This process has one thread, so its own child is safely bound to it.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
PARENT_CHECK_S = 0.1
FORWARDED = {signal.SIGTERM, signal.SIGINT}
# Not a second SIGTERM: systemd sends one to every process of a service.
KILL = signal.SIGUSR1
SHARED_MEMORY = Path("/dev/shm")


def main() -> int:
    """Guards one run of the command and returns its exit status."""
    parent_pid, private_folder, *command = sys.argv[1:]
    # Blocked, so that each arrives in sigtimedwait and none is lost between two calls.
    watched = {*FORWARDED, KILL, signal.SIGCHLD, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    # Whoever ignores it hands that down, and children that end are then reaped by the kernel.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = _spawn(command)
    try:
        os.write(sys.stdout.fileno(), b"%d\n" % child)
        os.close(sys.stdout.fileno())
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and os.getppid() == int(
            parent_pid
        ):
            received = signal.sigtimedwait(watched, PARENT_CHECK_S)
            if received is not None and received.si_signo == KILL:
                break
            if received is not None and received.si_signo in FORWARDED:
                os.kill(child, received.si_signo)
    except BrokenPipeError:
        pass  # who started this is gone, or was interrupted before it could read
    finally:
        # Reaped last: until then neither its number nor its group's can have been given to others.
        os.killpg(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        clean_up(Path(private_folder))
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _spawn(command: list[str]) -> int:
    guard = os.getpid()
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):
            os.setpgid(child, child)
        return child
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        os.execv(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error}", file=sys.stderr, flush=True)
    os._exit(127)


def clean_up(private_folder: Path) -> None:
    """Removes what a run leaves behind: its shared memory, if it was killed, and its private folder."""
    for region in SHARED_MEMORY.glob(f"{private_folder.name}-*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(private_folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
