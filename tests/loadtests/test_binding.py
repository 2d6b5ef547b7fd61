"""Which resource binds: the first of generator, GPU, instances and CPU that is used up."""

from __future__ import annotations

from typing import Any

import pytest
from tritonpress_loadtests.binding import binding_resource, busy_shares

SERVED = {"m": {"instances": 0}, "m_step": {"instances": 2}}


def stage(
    *, busy: float = 0.1, cpu: float = 0.1, server_cores: float | None = 1.4, gpu: Any = None, bottleneck: str = ""
) -> dict[str, Any]:
    """Returns a stage of 10 s in which two instances of a step were busy for that share."""
    step = {"model": "m_step", "batch_sizes": {"1": 10, "4": 10}, "execution_ms": {"1": 200 * busy, "4": 1800 * busy}}
    server = {"cpu_cores": server_cores, "machine_cpu_share": cpu, "gpu": gpu or {}}
    ensemble = {"model": "m", "batch_sizes": {}, "execution_ms": {}}
    return {"duration_s": 10.0, "models": [ensemble, step], "generator": {"bottleneck": bottleneck}, "server": server}


@pytest.mark.parametrize(
    ("measured", "binds"),
    [
        (stage(bottleneck="used 99% of a core", busy=0.9), "the load generator"),
        (stage(gpu={"GPU-a": {"utilization": 0.5}, "GPU-b": {"utilization": 0.97}}), "the GPU GPU-b: 97% used"),
        (stage(gpu={"GPU-a": {"utilization": 0.9}}, busy=0.9), "the GPU GPU-a: 90% used"),
        (stage(gpu={"GPU-a": {"power_w": 80.0}}), "nothing: the server could do more"),
        (stage(busy=0.9), "the instances of m_step: 90% busy"),
        (stage(busy=0.9, cpu=0.95), "the instances of m_step: 90% busy, on a machine whose CPU is 95% used"),
        # Of a server elsewhere the CPU here says nothing.
        (stage(busy=0.9, cpu=0.95, server_cores=None), "the instances of m_step: 90% busy"),
        (stage(cpu=0.95), "the CPU: 95% of 2 cores, 1.4 by the server"),
        (stage(cpu=0.95, server_cores=None), "nothing: the server could do more"),
        (stage(busy=0.84, cpu=0.84), "nothing: the server could do more"),
        ({**stage(), "models": []}, "unknown: Triton's statistics tell of no request"),
        ({**stage(cpu=0.95), "models": []}, "the CPU: 95% of 2 cores, 1.4 by the server"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_first_that_is_used_up_binds(measured: dict[str, Any], binds: str) -> None:
    assert binding_resource(measured, SERVED, 2) == binds


def test_busy_is_the_time_of_all_executions_over_that_of_all_instances() -> None:
    assert busy_shares(stage(busy=0.7), SERVED) == pytest.approx({"m_step": 0.7})
