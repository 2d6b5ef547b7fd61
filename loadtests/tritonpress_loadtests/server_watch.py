"""The server's side of a run: CPU and memory of its processes, and what its Prometheus endpoint counts."""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from statistics import fmean
from types import TracebackType
from typing import Any

import psutil

from tritonpress_loadtests.errors import ScenarioError

_SAMPLE_S = 0.5
_SCRAPE_S = 2.0
"""Between two readings of a GPU's gauges, which Triton renews so often (`--metrics-interval-ms`)."""
_TIMEOUT_S = 5.0
_METRIC = re.compile(r"^(nv_\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
# Counters are subtracted over a stage.
_COUNTERS = {
    "nv_inference_request_success": "answered",
    "nv_inference_request_failure": "failed",
    "nv_cache_num_hits_per_model": "cache_hits",
    "nv_cache_num_misses_per_model": "cache_misses",
}
# What a stage has of a GPU's gauges, by what sums up the readings during it.
_GPU: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "nv_gpu_utilization": ("utilization", fmean),
    "nv_gpu_memory_used_bytes": ("memory_bytes", max),
    "nv_gpu_power_usage": ("power_w", fmean),
}
_GPU_ENERGY = "nv_energy_consumption"
_LEAST_ENERGY_S = 20.0  # Triton reads the counter as rarely as the gauges; of less it would be a guess

Samples = list[tuple[str, dict[str, str], float]]


class ServerWatch:
    """Samples the server's processes while it is entered.

    Args:
        url: The gRPC endpoint; where it is on this machine, the process that listens there is found by its port.
        pid: The server's process, if it is not to be found so.
        metrics_url: `HOST:PORT` of the Prometheus endpoint; None leaves it out.

    Raises:
        ScenarioError: `pid` is no process, or the endpoint does not answer.
    """

    def __init__(self, url: str, *, pid: int | None = None, metrics_url: str | None = None) -> None:
        self._metrics_url = metrics_url
        try:
            self._root = psutil.Process(pid) if pid is not None else _listener(url)
        except psutil.NoSuchProcess as exc:
            raise ScenarioError(f"`--server-pid` {pid} is no process here; leave it out for a remote server") from exc
        self._cpus = _allowed_cpus(self._root)
        self._memory_bytes: list[int] = []
        self._meanwhile: list[Samples] = []
        self.readings: list[Samples] = []
        """Of the stage that was stopped last, what was read of the GPUs during it."""
        self._stopped = threading.Event()
        self._before: Samples | None = self._scrape()
        self._has_gpu = any(name in _GPU for name, _, _ in self._before)
        self.missing: list[str] = []
        """Of the stage in hand, what could not be read, a sentence each."""

    def __enter__(self) -> ServerWatch:
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._sampler.join()

    @property
    def cores(self) -> int:
        """How many CPUs the server may use; those that this process may, where it is not on this machine."""
        return len(self._cpus)

    def start(self) -> None:
        """Begins a stage."""
        self.missing = []
        self._before = self._scraped()
        self._cpu_before_s = self._cpu_s()
        psutil.cpu_percent(percpu=True)
        self._memory_bytes = []
        self._meanwhile = []
        self._started_s = time.monotonic()

    def stop(self) -> None:
        """Ends a stage's time; what the server counts of it may still come, and is read by `finish`."""
        self._elapsed_s = time.monotonic() - self._started_s
        if self._root is not None and _has_ended(self._root):
            self._root = None
        # Of a stub that has ended meanwhile its time is gone too.
        self._cores = max(0.0, self._cpu_s() - self._cpu_before_s) / self._elapsed_s if self._root else None
        self._machine_cpu_share = _busy_share(psutil.cpu_percent(percpu=True), self._cpus)
        self._most_bytes = max(self._memory_bytes, default=self._resident_bytes()) if self._root else None
        self.readings = list(self._meanwhile)
        if self._has_gpu:  # idle while the server is waited for
            self.readings += filter(None, [self._scraped()])

    def finish(self) -> dict[str, Any]:
        """Returns the figures of a stage that was stopped; None of processes that are not on this machine, or no more.

        `cpu_cores` (CPU time over wall time), `memory_bytes` (the largest sum of resident sizes), `machine_cpu_share`
        (of `cores`, by everything), `metrics` ({model: {counter: increase}}) and `gpu` ({uuid: {utilization, power_w:
        means, memory_bytes: the largest, energy_j: what it took, if the stage was 20 s}}, as far as Triton shows them).
        Without the endpoint's answer both are empty, and `missing` says why.
        """
        after = self._scraped()
        read = self._before is not None and after is not None
        return {
            "cpu_cores": self._cores,
            "memory_bytes": self._most_bytes,
            "machine_cpu_share": self._machine_cpu_share,
            "metrics": increases(self._before or [], after or []) if read else {},
            "gpu": gpu_figures((self._before or []) if self._elapsed_s >= _LEAST_ENERGY_S else [], self.readings),
        }

    def _sample(self) -> None:
        scraped_s = time.monotonic()
        while not self._stopped.wait(_SAMPLE_S):
            if self._root:
                self._memory_bytes.append(self._resident_bytes())
            if self._has_gpu and time.monotonic() - scraped_s >= _SCRAPE_S:
                stage = self._meanwhile
                # What cannot be read now is missing at the stage's end too, and said there.
                with contextlib.suppress(ScenarioError):
                    stage.append(self._scrape())
                scraped_s = time.monotonic()

    def _processes(self) -> list[psutil.Process]:
        if (root := self._root) is None:
            return []
        with contextlib.suppress(psutil.Error):
            return [root, *root.children(recursive=True)]
        return []

    def _cpu_s(self) -> float:
        total = 0.0
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def _resident_bytes(self) -> int:
        total = 0
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def _scraped(self) -> Samples | None:
        """Returns what the endpoint counts; None, and a note, if it does not answer during the load."""
        try:
            return self._scrape()
        except ScenarioError as exc:
            self.missing.append(str(exc))
            return None

    def _scrape(self) -> Samples:
        if self._metrics_url is None:
            return []
        try:
            with urllib.request.urlopen(f"http://{self._metrics_url}/metrics", timeout=_TIMEOUT_S) as answer:
                return parse_metrics(answer.read().decode())
        except (OSError, ValueError, http.client.HTTPException) as exc:
            message = f"`--metrics-url` {self._metrics_url} does not answer ({exc}); give HOST:PORT of Triton's metrics"
            raise ScenarioError(message) from exc


def _allowed_cpus(process: psutil.Process | None) -> list[int]:
    """Returns the CPUs that a process may use; this one's where there is none, or it has ended."""
    if process is not None:
        with contextlib.suppress(psutil.Error):
            return sorted(process.cpu_affinity())
    return sorted(os.sched_getaffinity(0))


def _busy_share(percents: Sequence[float], cpus: Sequence[int]) -> float:
    """Returns the share of the time in which these CPUs were busy."""
    # A container may be shown its own CPUs alone, numbered from 0.
    own = [percents[cpu] for cpu in cpus] if cpus[-1] < len(percents) else percents
    return fmean(own) / 100


def _has_ended(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def parse_metrics(text: str) -> Samples:
    """Returns name, labels and value of each of Triton's samples in Prometheus' text format."""
    matches = (_METRIC.match(line) for line in text.split("\n"))
    return [(match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])) for match in matches if match]


def increases(before: Samples, after: Samples) -> dict[str, dict[str, float]]:
    """Returns by model how much each counter grew, those that did not left out."""
    earlier = {(name, tuple(labels.items())): value for name, labels, value in before}
    grown: dict[str, dict[str, float]] = {}
    for name, labels, value in after:
        key = _COUNTERS.get(name)
        grew = value - earlier.get((name, tuple(labels.items())), 0.0)
        if key and grew and "model" in labels:
            counters = grown.setdefault(labels["model"], {})
            counters[key] = counters.get(key, 0.0) + grew
    return grown


def gpu_figures(before: Samples, readings: Sequence[Samples]) -> dict[str, dict[str, float]]:
    """Returns the figures of each GPU by its UUID: of its gauges, and by how much its counter of joules grew.

    Args:
        before: As the stage began; empty leaves the joules out.
        readings: During the stage, the last at its end.
    """
    found: dict[str, dict[str, float]] = {}
    for metric, (key, summary) in _GPU.items():
        seen: dict[str, list[float]] = {}
        for samples in readings:
            for uuid, value in _by_gpu(samples, metric).items():
                seen.setdefault(uuid, []).append(value)
        for uuid, values in seen.items():
            found.setdefault(uuid, {})[key] = summary(values)
    earlier = _by_gpu(before, _GPU_ENERGY)
    for uuid, value in _by_gpu(readings[-1] if readings else [], _GPU_ENERGY).items():
        # A server that restarted meanwhile counts from 0 again.
        if earlier.get(uuid, math.inf) <= value:
            found.setdefault(uuid, {})["energy_j"] = value - earlier[uuid]
    return found


def _by_gpu(samples: Samples, metric: str) -> dict[str, float]:
    return {labels["gpu_uuid"]: value for name, labels, value in samples if name == metric and "gpu_uuid" in labels}


def _listener(url: str) -> psutil.Process | None:
    """Returns the process on this machine that listens at the address, if it is seen."""
    host, _, port = url.rpartition(":")
    if host not in ("127.0.0.1", "localhost", "[::1]") or not port.isdigit():
        return None
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == int(port)
            if listens and connection.pid:
                return psutil.Process(connection.pid)
    return None
