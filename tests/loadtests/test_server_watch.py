"""Triton's metrics of GPUs, in the text that its endpoint writes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_loadtests import server_watch
from tritonpress_loadtests.served_models import instances
from tritonpress_loadtests.server_watch import ServerWatch, gpu_figures, parse_metrics

BEFORE = """\
# HELP nv_energy_consumption GPU energy consumption in joules since the Triton Server started
# TYPE nv_energy_consumption counter
nv_energy_consumption{gpu_uuid="GPU-a"} 1200.5
nv_energy_consumption{gpu_uuid="GPU-b"} 900
nv_gpu_utilization{gpu_uuid="GPU-a"} 0
"""
AFTER = """\
nv_energy_consumption{gpu_uuid="GPU-a"} 1700.5
nv_energy_consumption{gpu_uuid="GPU-b"} 20
nv_gpu_utilization{gpu_uuid="GPU-a"} 0.87
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 1048576
nv_gpu_power_usage{gpu_uuid="GPU-a"} 412.3
nv_gpu_power_usage{gpu_uuid="GPU-b"} 90
"""
IDLE = """\
nv_gpu_utilization{gpu_uuid="GPU-a"} 0
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 1000
"""
BUSY = """\
nv_gpu_utilization{gpu_uuid="GPU-a"} 0.9
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 5000
"""


def test_a_gpu_has_gauges_and_what_it_took_in_the_stage() -> None:
    figures = gpu_figures(parse_metrics(BEFORE), [parse_metrics(AFTER)])
    assert figures["GPU-a"] == {"utilization": 0.87, "memory_bytes": 1048576, "power_w": 412.3, "energy_j": 500}
    # Of a server that began to count anew during the stage it is not known.
    assert figures["GPU-b"] == {"power_w": 90}
    assert "energy_j" not in gpu_figures([], [parse_metrics(AFTER)])["GPU-a"]


class Endpoint:
    """What answers as Triton's endpoint does on a machine with a GPU."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.address = ""
        self.read = 0
        """How often it was read."""


@contextmanager
def endpoint(text: str) -> Iterator[Endpoint]:
    """Gives an endpoint that answers with a text, which may be changed."""
    served = Endpoint(text)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.read += 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(served.text.encode())

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        served.address = f"127.0.0.1:{server.server_port}"
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def test_a_gpu_s_gauges_are_those_during_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_watch, "_SAMPLE_S", 0.05)
    monkeypatch.setattr(server_watch, "_SCRAPE_S", 0.1)
    # Read as the watch is made, as the stage begins, during it, at its end, and behind it, when requests are counted.
    with endpoint(IDLE) as served, ServerWatch("other.example:8001", metrics_url=served.address) as watch:
        served.text = BUSY
        watch.start()
        before = served.read
        while served.read < before + 3:
            time.sleep(0.05)
        watch.stop()
        served.text = IDLE
        figures = watch.finish()
    # Of the three awaited the first may have begun before the stage, and the last may have come too late for the watch.
    assert len(watch.readings) >= 2
    assert figures["gpu"]["GPU-a"]["utilization"] == pytest.approx(0.9)
    assert figures["gpu"]["GPU-a"]["memory_bytes"] == 5000


def test_what_the_server_counts_behind_a_stage_is_read_and_no_part_of_its_time() -> None:
    counted = 'nv_inference_request_success{model="m",version="1"} '
    with endpoint(f"{counted}10\n") as served, ServerWatch("other.example:8001", metrics_url=served.address) as watch:
        watch.start()
        watch.stop()
        served.text = f"{counted}310\n"
        assert watch.finish()["metrics"] == {"m": {"answered": 300}}


@pytest.mark.parametrize(
    ("seen", "share"),
    [
        (lambda cpu: [0.0] * cpu + [97.0] + [1.0] * 63, 0.97),
        # A container that is shown fewer than the number of its CPU.
        (lambda cpu: [97.0] if cpu else [97.0, 0.0], 0.97),
    ],
)
def test_the_cpu_is_that_which_the_server_may_use(
    monkeypatch: pytest.MonkeyPatch, seen: Callable[[int], list[float]], share: float
) -> None:
    cpu = max(os.sched_getaffinity(0))

    def cpu_percent(percpu: bool = False) -> float | list[float]:
        return seen(cpu) if percpu else sum(seen(cpu)) / len(seen(cpu))

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as server:
        psutil.Process(server.pid).cpu_affinity([cpu])
        with ServerWatch("other.example:8001", pid=server.pid) as watch:
            monkeypatch.setattr(psutil, "cpu_percent", cpu_percent)
            watch.start()
            watch.stop()
            assert watch.finish()["machine_cpu_share"] == pytest.approx(share)
            assert watch.cores == 1
        server.kill()
    # Of a server elsewhere these are the generator's.
    assert ServerWatch("other.example:8001").cores == len(os.sched_getaffinity(0))


def test_a_group_has_its_instances_on_each_of_its_gpus() -> None:
    gpu, cpu = pb.ModelInstanceGroup.KIND_GPU, pb.ModelInstanceGroup.KIND_CPU
    groups = [pb.ModelInstanceGroup(kind=gpu, count=2, gpus=[0, 1, 3]), pb.ModelInstanceGroup(kind=cpu, count=4)]
    assert instances(pb.ModelConfig(instance_group=groups)) == 10
