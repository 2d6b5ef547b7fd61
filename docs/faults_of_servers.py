"""Faults of a server that runs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
from fault_lab import CLIENTS, LOST, Lab, Load, judge, stubs
from tritonpress_client import Connection
from tritonpress_server import TritonServer
from tritonpress_server.ports import choose_ports


def stub_killed(lab: Lab) -> None:
    """A Python process of a step is killed, as the kernel does where memory is short."""
    with TritonServer(lab.repository, log_path=lab.folder / "log") as server:
        load = Load(server.grpc_url, lab.repository, lab.name)
        with load.by(CLIENTS):
            time.sleep(lab.seconds / 2)
            victim = _one_of_several(server.pid)
            victim.send_signal(signal.SIGKILL)
            time.sleep(lab.seconds)
            rest = load.wait_for_answers(1, 5)
        judge(lab, load, failures={"ServerError"})
        lab.promise(psutil.pid_exists(server.pid), "the server lives")
        lab.promise(rest is not None or len(stubs(server.pid)) == 0, "the step's other instance goes on answering")
        with Connection(server.grpc_url, timeout_s=120) as connection:
            for step in [model.name for model in connection.models() if model.name != lab.name]:
                connection.unload_model(step)
            time.sleep(2)
            connection.load_model(lab.name)
        load.reset()
        with load.by(CLIENTS):
            time.sleep(lab.seconds / 2)
        lab.say("unloaded, and loaded again:")
        judge(lab, load)


def _one_of_several(pid: int) -> psutil.Process:
    """Returns a Python process of the step that has the most, as one that has no other answers nothing without it."""
    by_step = defaultdict(list)
    for stub in stubs(pid):
        by_step[stub.cmdline()[1]].append(stub)
    return max(by_step.values(), key=len)[-1]


def server_killed(lab: Lab) -> None:
    """tritonserver is killed, and what has started it; what they leave is looked for."""
    ports = choose_ports("127.0.0.1", {"grpc": None, "http": None, "metrics": None})
    load = Load(f"127.0.0.1:{ports['grpc']}", lab.repository, lab.name, timeout_s=5)
    own = lab.folder / "tmp"
    own.mkdir()
    for victim in ("tritonserver", "tritonpress-serve"):
        load.reset()
        with _serving(lab, ports) as process, load.by(CLIENTS):
            time.sleep(lab.seconds / 2)
            family = psutil.Process(process.pid).children(recursive=True)
            server = next(child for child in family if child.name() == "tritonserver")
            server_id = next(part.partition("=")[2] for part in server.cmdline() if part.startswith("--id="))
            began = time.monotonic()
            os.kill(server.pid if victim == "tritonserver" else process.pid, signal.SIGKILL)
            status = process.wait(15)
            _, alive = psutil.wait_procs(family, 10)
            lab.say(f"{victim} killed: all ended after {time.monotonic() - began:.1f} s, status {status}")
            lab.promise(not alive, "nothing of it runs on")
            if victim == "tritonserver":
                lab.promise(status == 1, "the command ends with status 1")
            left = [path.name for path in own.iterdir() if path.is_dir()]
            left += [path.name for path in Path("/dev/shm").glob(f"{server_id}-*")]
            lab.promise(not left, f"neither files nor shared memory are left{f', but {left}' if left else ''}")
            with _serving(lab, ports):
                back = load.wait_for_answers(10, 20)
                lab.promise(back is not None, f"the same clients are answered after its restart ({back or 0:.1f} s)")
        judge(lab, load, failures=LOST)


@contextlib.contextmanager
def _serving(lab: Lab, ports: dict[str, int]) -> Iterator[subprocess.Popen[str]]:
    """Yields `tritonpress-serve` once it is ready."""
    command = [sys.executable, "-m", "tritonpress_server.cli", str(lab.repository)]
    command += [f"--{endpoint}-port={port}" for endpoint, port in ports.items()]
    environment = {**os.environ, "TMPDIR": str(lab.folder / "tmp")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        for line in process.stdout or ():
            if line.startswith("ready"):
                break
        try:
            yield process
        finally:
            process.terminate()
