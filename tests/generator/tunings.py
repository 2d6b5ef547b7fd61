"""Configs to tune, and what a tuning might have found."""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator.tune import knobs as turning
from tritonpress_generator.tune.knobs import Knob
from tritonpress_generator.tune.load import Measured

LIMIT_MS = 100.0


def at(rate: float, p99_ms: float) -> Measured:
    """Returns what was measured at a rate."""
    return Measured(rate, p99_ms, 0.9 * p99_ms, 1.1 * p99_ms, p99_ms / 3, 0.0, 1.5, "the CPU", "")


def step(role: str, *, threads: int | None = None, batch: int = 16, gpu: bool = False) -> pb.ModelConfig:
    """Returns the config of a step of `w`."""
    kind = pb.ModelInstanceGroup.KIND_GPU if gpu else pb.ModelInstanceGroup.KIND_CPU
    config = pb.ModelConfig(name=f"w_{role}", max_batch_size=batch, instance_group=[pb.ModelInstanceGroup(kind=kind)])
    config.instance_group[0].count = 1
    config.dynamic_batching.SetInParent()
    if threads:
        config.parameters["intra_op_thread_count"].string_value = str(threads)
    return config


def of_steps(
    *roles: str, cores: int = 4, engine: str = "onnxruntime", **more: Any
) -> tuple[dict[str, pb.ModelConfig], list[Knob]]:
    """Returns the configs of `w` and its steps, and its knobs."""
    threads = {"engine": 2, "model": None if "engine" in roles else 2}
    configs = {f"w_{role}": step(role, threads=threads.get(role)) for role in roles}
    configs["w"] = pb.ModelConfig(name="w", platform="ensemble", max_batch_size=16)
    steps = {role: f"w_{role}" for role in roles}
    return configs, turning.knobs(configs, steps, workload="w", engine=engine, cores=cores, p99_ms=LIMIT_MS, **more)
