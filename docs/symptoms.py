"""Produces what goes wrong in operation on the embedded server, and prints what is seen of it.

    python docs/symptoms.py model_repo classification TEXT latency|queue|memory|stub|shared_memory

TEXT is what is asked. `shared_memory` mounts a small /dev/shm of its own: run it under `unshare -rm`.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from fault_lab import asking
from tritonpress_client import TritonpressError
from tritonpress_client.connection import Connection
from tritonpress_server import TritonServer

_SAMPLE = re.compile(r'^(nv_[a-z_]+)\{model="([^"]+)",(?:reason="([A-Z]+)",)?version="1"\} ([0-9.e+]+)$', re.MULTILINE)


class Asked:
    """A server, and clients that ask it on and on."""

    def __init__(self, server: TritonServer, name: str, text: str, inputs: list[str]) -> None:
        self.server, self.name = server, name
        self.tensors = {key: np.array([[text.encode()]], np.object_) for key in inputs}
        self.latencies: list[float] = []
        self.errors: dict[str, int] = {}
        self._stop = threading.Event()

    @contextlib.contextmanager
    def by(self, clients: int) -> Iterator[None]:
        """Asks from so many clients, each a request at a time."""
        self.latencies, self.errors = [], {}
        with asking(self._ask, clients, self._stop):
            yield

    def _ask(self) -> None:
        with Connection(self.server.grpc_url, timeout_s=20) as connection:
            while not self._stop.is_set():
                start = time.perf_counter()
                try:
                    connection.infer(self.name, self.tensors)
                    self.latencies.append(1e3 * (time.perf_counter() - start))
                except TritonpressError as exc:
                    said = str(exc)
                    self.errors[said] = self.errors.get(said, 0) + 1
                    time.sleep(0.05)

    def metrics(self) -> dict[tuple[str, str, str], float]:
        """Returns Triton's metrics of each model, by name, model and reason."""
        with urllib.request.urlopen(f"http://{self.server.metrics_url}/metrics", timeout=10) as response:
            text = response.read().decode()
        return {(name, model, reason): float(value) for name, model, reason, value in _SAMPLE.findall(text)}

    def report(self, what: str, seconds: float, clients: int) -> None:
        """Asks for a while, and prints what is seen."""
        before = self.metrics()
        with self.by(clients):
            pending: dict[str, float] = {}
            for _ in range(20):
                time.sleep(seconds / 20)
                now = self.metrics()
                for (metric, model, _), value in now.items():
                    if metric == "nv_inference_pending_request_count":
                        pending[model] = max(pending.get(model, 0), value)
        print(f"\n{what}: {clients} clients, {len(self.latencies) / seconds:.1f} answers/s")
        if self.latencies:
            p50, p99 = np.percentile(self.latencies, [50, 99])
            print(f"  clients: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        for said, count in self.errors.items():
            print(f"  clients: {count} x {said}")
        for model in sorted({model for _, model, _ in now}):
            spent = {n: v - before.get((n, m, r), 0) for (n, m, r), v in now.items() if m == model and not r}
            failed = {r: v - before.get((n, m, r), 0) for (n, m, r), v in now.items() if m == model and r}
            count = max(1.0, spent["nv_inference_request_success"])
            print(
                f"  {model}: queue {spent['nv_inference_queue_duration_us'] / count / 1e3:.1f} ms, compute "
                f"{spent['nv_inference_compute_infer_duration_us'] / count / 1e3:.1f} ms a request, "
                f"{spent['nv_inference_count'] / max(1.0, spent['nv_inference_exec_count']):.1f} texts an execution, "
                f"pending at most {pending[model]:.0f}, failures { {r: int(v) for r, v in failed.items() if v} }"
            )
        print(f"  memory: {'  '.join(f'{name} {mib:.0f} MiB' for name, mib in self.memory().items())}")

    def memory(self) -> dict[str, float]:
        """Returns the resident memory of the server and of its stubs, in MiB."""
        pids = {"tritonserver": self.server.pid, **{f"stub {pid}": pid for pid in self.stubs()}}
        found = {}
        for name, pid in pids.items():
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            # One that was killed, and is not yet waited for, has none.
            found[name] = int((status.partition("VmRSS:")[2].split() or ["0"])[0]) / 1024
        return found

    def stubs(self) -> list[int]:
        """Returns the process ids of the Python stubs."""
        tasks = Path(f"/proc/{self.server.pid}/task").glob("*/children")
        return sorted({int(pid) for task in tasks for pid in task.read_text(encoding="utf-8").split()})


def latency(asked: Asked, seconds: float) -> None:
    """Other work takes the processor."""
    asked.report("as it should be", seconds, 2)
    burners = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(4 * len(os.sched_getaffinity(0)))]
    for burner in burners:
        burner.start()
    asked.report("with other work on the processor", seconds, 2)
    for burner in burners:
        burner.terminate()


def _burn() -> None:
    while True:
        pass


def queue(asked: Asked, seconds: float) -> None:
    """More is asked than can be answered."""
    asked.report("as it should be", seconds, 2)
    asked.report("more than it can answer", seconds, 64)


def memory(asked: Asked, seconds: float) -> None:
    """The steps of an earlier build are loaded beside those that serve."""
    asked.report("as it should be", seconds, 2)
    with Connection(asked.server.grpc_url, timeout_s=120) as connection:
        step = next(m.name for m in connection.models() if m.name != asked.name and m.name.startswith(asked.name))
        copy = asked.server.repository / f"{step[:-1]}x"
        shutil.copytree(asked.server.repository / step, copy)
        config = copy / "config.pbtxt"
        config.write_text(config.read_text(encoding="utf-8").replace(step, copy.name), encoding="utf-8")
        connection.load_model(copy.name)
        asked.report(f"with {copy.name} loaded and asked by nobody", seconds, 2)


def stub(asked: Asked, seconds: float) -> None:
    """A stub is killed, as the kernel does where memory is short."""
    asked.report("as it should be", seconds, 2)
    killer = threading.Timer(seconds / 3, lambda: os.kill(asked.stubs()[-1], signal.SIGKILL))
    killer.start()
    asked.report("a stub killed in the middle", seconds, 2)
    asked.report("afterwards", seconds, 2)
    print(f"  ready: {asked.name} {_ready(asked)}")
    with Connection(asked.server.grpc_url, timeout_s=120) as connection:
        steps = [m.name for m in connection.models() if m.ready and m.name != asked.name]
        for step in steps:
            connection.load_model(step)
        asked.report("after an order to load the step", seconds, 2)
        for step in steps:
            connection.unload_model(step)
        time.sleep(2)
        connection.load_model(asked.name)
    asked.report("unloaded, and loaded again", seconds, 2)


def shared_memory(asked: Asked, seconds: float) -> None:
    """Something else fills /dev/shm."""
    asked.report("as it should be", seconds, 2)
    filler = Path("/dev/shm/filler")
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    big = np.array([[asked.tensors[key].ravel()[0] * 200] for key in asked.tensors], np.object_)
    asked.tensors = {key: big[i : i + 1].repeat(4, axis=0) for i, key in enumerate(asked.tensors)}
    asked.report("with /dev/shm full", seconds, 4)
    print(f"  log: {_last_error(asked)}")
    filler.unlink()


def _ready(asked: Asked) -> str:
    with Connection(asked.server.grpc_url) as connection:
        return f"{connection.ready(asked.name)}, server {connection.ready()}"


def _last_error(asked: Asked) -> str:
    text = asked.server.log_tail()
    return text.strip().splitlines()[-1].strip()


SYMPTOMS: dict[str, Callable[[Asked, float], None]] = {
    "latency": latency,
    "queue": queue,
    "memory": memory,
    "stub": stub,
    "shared_memory": shared_memory,
}


def main() -> None:
    """Serves a copy of the repository, and produces the symptom."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("name")
    parser.add_argument("text")
    parser.add_argument("symptom", choices=SYMPTOMS)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    if options.symptom == "shared_memory":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", "/dev/shm"], check=True)
    with tempfile.TemporaryDirectory(prefix="tritonpress-") as folder:
        repository = Path(shutil.copytree(options.repository, Path(folder) / "model_repo"))
        with TritonServer(repository, models=[options.name], log_path=Path(folder) / "log") as server:
            with Connection(server.grpc_url) as connection:
                inputs = [*connection.model_metadata(options.name).inputs]
            SYMPTOMS[options.symptom](Asked(server, options.name, options.text, inputs), options.seconds)


if __name__ == "__main__":
    sys.exit(main())
