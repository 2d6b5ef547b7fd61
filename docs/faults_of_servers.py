"""Faults of a server that runs."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from fault_lab import Lab, Load, judge, stubs
from tritonpress_client import Connection, TritonpressError
from tritonpress_generator import builds
from tritonpress_server import TritonServer
from tritonpress_server.ports import choose_ports

CLIENTS = 4
_LOST = {"ServerUnreachableError", "ModelUnavailableError", "DeadlineExceededError"}
"""What a client may be told of a server that is away."""
_FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
_JUMP = "TRITONPRESS_FAULTS_JUMP"
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


def stub_killed(lab: Lab) -> None:
    """A Python process of a step is killed, as the kernel does where memory is short."""
    with TritonServer(lab.repository, log_path=lab.folder / "log") as server:
        load = Load(server.grpc_url, lab.repository, lab.name)
        with load.by(CLIENTS):
            time.sleep(lab.seconds / 2)
            victim = stubs(server.pid)[-1]
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
        judge(lab, load, failures=_LOST)


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


def with_a_clock_of_its_own() -> None:
    """Runs this program again under libfaketime, which a file tells what the time of day is; monotonic time goes on.

    So do clocks that an operator or NTP sets: of the kernel's clocks only CLOCK_REALTIME leaps.
    """
    if _JUMP in os.environ:
        return
    if not _FAKETIME.exists():
        sys.exit(f"clock-jump needs {_FAKETIME}, which is missing; apt-get install faketime")
    jump = Path(f"/dev/shm/tritonpress-jump-{os.getpid()}")
    jump.write_text("+0", encoding="ascii")
    environment = {
        **os.environ, "LD_PRELOAD": str(_FAKETIME), _JUMP: str(jump),
        "FAKETIME_TIMESTAMP_FILE": str(jump), "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DISABLE_SHM": "1",
    }  # fmt: skip
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def clock_jump(lab: Lab) -> None:
    """The time of day leaps while requests wait, while a client waits, and while a server drains."""
    file = Path(os.environ[_JUMP])
    try:
        _clock_jump(lab, file)
    finally:
        file.unlink()


def _clock_jump(lab: Lab, file: Path) -> None:
    _set_queue_timeout(lab)
    real = time.time()
    _leap(file, 3600)
    time.sleep(2)  # the file is looked at once a second
    lab.promise(3500 < time.time() - real < 3700, "the clock leaps here, so that the rest means something")
    _leap(file, 0)
    with TritonServer(lab.repository, log_path=lab.folder / "log") as server:
        load = Load(server.grpc_url, lab.repository, lab.name)
        # More than are executed at once, so that requests wait in the queue, whose timeout is 8 s.
        with load.by(4 * CLIENTS):
            for seconds in (3600, -3600, 0):
                time.sleep(lab.seconds / 3)
                _leap(file, seconds)
            time.sleep(lab.seconds / 3)
            lab.promise(load.wait_for_answers(1, 5) is not None, "requests are answered after it")
            judge(lab, load)
        lab.promise(load.slowest_s < 8, "no request hangs")
        for seconds in (3600, -3600):
            taken = _unanswered_s(file, seconds)
            lab.promise(1.5 < taken < 4, f"a client keeps a deadline of 2 s meanwhile ({taken:.1f} s)")
        load.reset()
        with load.by(2):
            time.sleep(1)
            leap = threading.Timer(0.1, _leap, (file, 3600))
            leap.start()
            began = time.monotonic()
            server.stop()
            drained = time.monotonic() - began
            leap.join()
        _leap(file, 0)
    lab.promise(drained < server.settings.drain_s, f"a server drains and ends while the clock leaps ({drained:.1f} s)")


def _leap(file: Path, seconds: int) -> None:
    # In one step: what reads it while it is written would see no time at all.
    new = file.with_suffix(".new")
    new.write_text(f"{seconds:+d}", encoding="ascii")
    new.replace(file)


def _set_queue_timeout(lab: Lab) -> None:
    """Gives the workload's steps a queue that refuses what has waited for 8 s."""
    for path in lab.repository.glob("*/config.pbtxt"):
        config = builds.read_config(path.parent)
        if config.HasField("dynamic_batching"):
            policy = config.dynamic_batching.default_queue_policy
            policy.timeout_action, policy.default_timeout_microseconds = 0, 8_000_000
            path.write_text(builds.config_text(config), encoding="utf-8")


def _unanswered_s(file: Path, seconds: int) -> float:
    """Returns when a client with a deadline of 2 s gave up on a peer that never answers, while the clock leaps."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        leap = threading.Timer(0.7, _leap, (file, seconds))
        leap.start()
        began = time.monotonic()
        with (
            contextlib.suppress(TritonpressError),
            Connection(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=2) as one,
        ):
            one.server_metadata()
        taken = time.monotonic() - began
        leap.join()
        _leap(file, 0)
    return taken


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
            lab.promise(said in {"ready", *_LOST}, "a new client is served, or told so within its deadline")
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


def soak(lab: Lab) -> None:
    """A steady load; memory of the server, of its stubs and of the client, and how it goes on."""
    with TritonServer(lab.repository, log_path=lab.folder / "log") as server:
        load = Load(server.grpc_url, lab.repository, lab.name)
        found: dict[str, list[float]] = {"tritonserver": [], "stubs": [], "client": []}
        with load.by(2):
            time.sleep(min(60.0, 12 * lab.minutes))  # pools are filled
            began = time.monotonic()
            while time.monotonic() - began < 60 * lab.minutes:
                found["tritonserver"].append(_mib(psutil.Process(server.pid)))
                found["stubs"].append(sum(map(_mib, stubs(server.pid))))
                found["client"].append(_mib(psutil.Process()))
                time.sleep(1)
        judge(lab, load)
        for who, mib in found.items():
            slope, low, high = trend(np.array(mib))
            hour = 3600 / (60 * lab.minutes / len(mib))
            lab.promise(
                low * len(mib) < max(4.0, 0.02 * mib[0]),
                f"memory of {who} is flat: {mib[0]:.1f} to {mib[-1]:.1f} MiB, {slope * hour:+.2f} MiB/h "
                f"(95 %: {low * hour:+.2f} to {high * hour:+.2f})",
            )


def trend(values: np.ndarray) -> tuple[float, float, float]:
    """Returns the slope of values a sample, with its interval of 95 %, by ten parts' means: samples are no draws."""
    parts = np.array([part.mean() for part in np.array_split(values, 10)])
    at = (np.arange(10) - 4.5) * len(values) / 10
    slope = float((at * parts).sum() / (at**2).sum())
    rest = parts - parts.mean() - slope * at
    # Student's t of 8 degrees of freedom.
    error = 2.306 * float(np.sqrt((rest**2).sum() / 8 / (at**2).sum()))
    return slope, slope - error, slope + error


def _mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20
