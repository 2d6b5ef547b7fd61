"""ONNX Runtime on the CPU: Triton's `onnxruntime` backend."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
from pydantic import Field
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator.engines import Asked
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.recipe_text import Settings

PLATFORM = "onnxruntime_onnx"
PACKAGES = ("onnxruntime",)
LAYOUTS = ("single", "ensemble", "scripting")
FORMS = ("ragged", "buckets", "exact")
INTEGERS = "int64"
SPARSE: tuple[str, ...] = ()
_MOST_INSTANCES = 4
_REFUSALS = tuple(
    value for value in vars(ort_state).values() if isinstance(value, type) and issubclass(value, Exception)
)
"""ONNX Runtime's exceptions; they share no class of their own."""


class Config(Settings):
    instances: int | None = Field(default=None, ge=1, le=256)
    """Sessions of the engine that run side by side; default: the cores that this process may use, 4 at most."""
    intra_op_thread_count: int | None = Field(default=None, ge=1, le=256)
    """Threads of one session; default: the cores that this process may use, divided by the instances."""


@dataclass(frozen=True)
class Sizing:
    """Instances and threads, decided."""

    instances: int
    intra_op_thread_count: int


def sizing(config: Config) -> Sizing:
    """Returns the recipe's instances and threads, or those that fit this machine.

    Together they have as many threads as there are cores, since instances that each take all cores slow each other down
    (https://github.com/triton-inference-server/server/issues/7213). Several instances of few threads come first: for
    short texts a session's second thread gains nothing and spins between requests, in the way of the other steps (on
    two cores, 16 users: 668 requests/s with two instances of one thread, 435 with one of two). Each holds the weights.
    """
    cores = len(os.sched_getaffinity(0))
    instances = config.instances or min(cores, _MOST_INSTANCES)
    return Sizing(instances, config.intra_op_thread_count or max(1, cores // instances))


def refusal(graph: Sequence[tuple[str, Any]], config: Config) -> str | None:
    """Returns why a CPU should not run what `graph` makes: it has no fast kernels for products of signed bytes."""
    for word, settings in graph:
        if word == "nncf" or (word == "qdq" and settings.precision == "int8"):
            return (
                "activations must be unsigned bytes, since products of signed ones take longer than FP32's, "
                f"{word} makes signed ones; use quantize for INT8 in place of nncf or qdq"
            )
    return None


def runs_here() -> bool:
    """Says whether this machine can run the engine."""
    return True


def rungs(fp32: onnx.ModelProto, model: onnx.ModelProto, config: Config) -> dict[str, onnx.ModelProto]:
    """Returns the graphs to choose from: what the recipe's graph passes have made."""
    return {"onnxruntime": model}


def build(graphs: Mapping[str, onnx.ModelProto], version_dir: Path, config: Config, asked: Asked) -> None:
    """Writes the engine into Triton's version folder `version_dir`.

    Raises:
        InputError: Triton's own backend is to run it, and cannot.
    """
    check_native([*graphs.values()][-1], asked, where="engine.onnxruntime")
    version_dir.mkdir(parents=True, exist_ok=True)
    onnx.save([*graphs.values()][-1], version_dir / "model.onnx")


def check_native(model: onnx.ModelProto, asked: Asked, *, where: str) -> None:
    """Refuses what Triton's own backend is to run and cannot: release 24.10 has ONNX Runtime 1.19.

    Raises:
        InputError: It has weights of 8 bits under FP32 activations.
    """
    for node in model.graph.node if asked.native else ():
        bits = next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 4)
        if node.op_type == "MatMulNBits" and bits != 4:
            raise InputError(
                f"{where}: {node.name} must have weights of 4 bits, has {bits}: Triton's own backend (24.10: ONNX "
                "Runtime 1.19) has no others; take weight_only with bits 4, or serve.steps: single"
            )


def load(version_dir: Path, config: Config, *, threads: int | None = None) -> Infer:
    """Returns the engine in `version_dir`, with `threads`, by default as many as there are cores.

    Raises:
        InputError: ONNX Runtime refuses the file.
    """
    return session_infer(version_dir / "model.onnx", threads=threads)


def threads(config: Config) -> list[int]:
    """Returns how many threads each instance has."""
    size = sizing(config)
    return [size.intra_op_thread_count] * size.instances


def session_infer(model: Path | bytes, *, threads: int | None = None) -> Infer:
    """Returns an ONNX model as an `Infer`.

    Args:
        model: A file, or the serialised model.
        threads: Of the session; default: the cores that this process may use.

    Raises:
        InputError: ONNX Runtime refuses the model, or, when it is asked, cannot run it at the shapes of a feed.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
        )
    except _REFUSALS as exc:
        raise InputError(f"engine: ONNX Runtime refuses the model ({' '.join(str(exc).split())[:300]})") from exc
    inputs = [tensor.name for tensor in session.get_inputs()]
    outputs = [tensor.name for tensor in session.get_outputs()]

    def infer(feed: Mapping[str, Array]) -> dict[str, Array]:
        try:
            answers = session.run(outputs, {name: feed[name] for name in inputs})
        except _REFUSALS as exc:
            raise InputError(f"engine: ONNX Runtime cannot run the model ({' '.join(str(exc).split())[:300]})") from exc
        return dict(zip(outputs, answers, strict=True))

    return infer


def measured(version_dir: Path, config: Config, asked: Asked) -> dict[str, Any]:
    """Returns nothing: this engine is held to the gate's metric alone."""
    return {}


def model_config(config: Config, asked: Asked) -> pb.ModelConfig:
    """Returns the engine's part of Triton's config: who runs it, where, with how many threads."""
    size = sizing(config)
    return pb.ModelConfig(
        platform=PLATFORM,
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_CPU, count=size.instances)],
        parameters={
            "intra_op_thread_count": pb.ModelParameter(string_value=str(size.intra_op_thread_count)),
            "inter_op_thread_count": pb.ModelParameter(string_value="1"),
        },
    )


def versions() -> dict[str, str]:
    """Returns what the engine was built and gated with, for the manifest."""
    return {"onnxruntime": onnxruntime.__version__}
