"""Triton's metrics of GPUs, in the text that its endpoint writes."""

from __future__ import annotations

from tritonpress_loadtests.server_watch import gpu_figures, parse_metrics

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


def test_a_gpu_has_gauges_and_what_it_took_in_the_stage() -> None:
    figures = gpu_figures(parse_metrics(BEFORE), parse_metrics(AFTER))
    assert figures["GPU-a"] == {"utilization": 0.87, "memory_bytes": 1048576, "power_w": 412.3, "energy_j": 500}
    # Of a server that began to count anew during the stage it is not known.
    assert figures["GPU-b"] == {"power_w": 90}
    assert "energy_j" not in gpu_figures([], parse_metrics(AFTER))["GPU-a"]
