"""A process has no file descriptor left."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
from fault_lab import CLIENTS, LOST, Lab, Load, judge
from tritonpress_server import TritonServer

_FEW_DESCRIPTORS = """
import os, resource, sys
from tritonpress_client import Connection, TritonpressError
own = len(os.listdir("/proc/self/fd"))
most = resource.getrlimit(resource.RLIMIT_NOFILE)
for more in range(0, 12):
    resource.setrlimit(resource.RLIMIT_NOFILE, (own + more, most[1]))
    try:
        with Connection(sys.argv[1], timeout_s=3) as connection:
            print("ready" if connection.ready() else "not ready")
    except TritonpressError as exc:
        print(type(exc).__name__)
resource.setrlimit(resource.RLIMIT_NOFILE, most)
with Connection(sys.argv[1], timeout_s=10) as connection:
    print("ready" if connection.ready() else "not ready")
"""


def descriptors(lab: Lab) -> None:
    """Connections take all of the server's file descriptors; then a client has none left."""
    with TritonServer(lab.repository, log_path=lab.folder / "log") as server:
        load = Load(server.grpc_url, lab.repository, lab.name)
        host, port = server.grpc_url.split(":")
        with load.by(CLIENTS), contextlib.ExitStack() as held:
            load.wait_for_answers(CLIENTS * 5, 20)
            opened = len([*Path(f"/proc/{server.pid}/fd").iterdir()])
            before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (opened + 10, before[1]))
            for _ in range(60):
                held.enter_context(socket.create_connection((host, int(port)), timeout=5))
            time.sleep(1)
            busy = psutil.Process(server.pid).cpu_times()
            said = _health(server.grpc_url)
            time.sleep(lab.seconds / 2)
            lab.promise(load.wait_for_answers(5, 10) is not None, "clients that are connected are answered on")
            spent = psutil.Process(server.pid).cpu_times().user - busy.user
            lab.say(f"limit {opened + 10}, 60 connections more: a new client is told {said}; {spent:.1f} s of CPU time")
            lab.promise(said in {"ready", *LOST}, "a new client is served, or told so within its deadline")
            held.close()
            time.sleep(1)
            back = _health(server.grpc_url)
            lab.promise(back == "ready", f"once they are gone new clients are served ({back})")
        judge(lab, load)
        lab.promise(psutil.pid_exists(server.pid), "the server lives")
        done = subprocess.run(
            [sys.executable, "-c", _FEW_DESCRIPTORS, server.grpc_url],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        lines = done.stdout.split()
        lab.say(f"a client with 0 to 11 descriptors more than it has is told {', '.join(dict.fromkeys(lines[:-1]))}")
        lab.promise(done.returncode == 0 and len(lines) == 13, f"it raises its own errors alone {done.stderr[-300:]}")
        lab.promise(lines[-1:] == ["ready"], "once it has some it is served")


def _health(url: str) -> str:
    """Returns what a new client in a process of its own is told."""
    code = _FEW_DESCRIPTORS.replace("range(0, 12)", "range(0)").replace("timeout_s=10", "timeout_s=4")
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=60, check=False)
    last = done.stderr.strip().splitlines()[-1:] or [""]
    return done.stdout.strip() or last[0].partition(":")[0].rpartition(".")[2]
