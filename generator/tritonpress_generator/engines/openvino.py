"""OpenVINO on the CPU: Triton's `openvino` backend.

It takes the plain graph, FP32, with the codes of `graph/weight_only.py` or with the pairs of `graph/nncf.py` or
`graph/qdq.py`, and computes in BF16 where the processor can. Triton's backend has no word against that, so the gate
runs in what OpenVINO chooses for this machine's processor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
from pydantic import Field
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import signal_stack
from tritonpress_generator.engines import Asked
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.onnx_graph import normalized
from tritonpress_generator.quantized_pairs import folded
from tritonpress_generator.recipe_text import Settings

BACKEND = "openvino"
PACKAGES = ("openvino",)
LAYOUTS = ("single", "ensemble", "scripting")
FORMS = ("exact", "buckets")
"""Triton's backend has no ragged inputs."""
INTEGERS = "int64"
SPARSE: tuple[str, ...] = ()
_MOST_INSTANCES = 4


class Config(Settings):
    instances: int | None = Field(default=None, ge=1, le=256)
    """Compiled models side by side; default: the cores that this process may use, 4 at most."""
    inference_num_threads: int | None = Field(default=None, ge=1, le=256)
    """Threads of one of them; default: the cores that this process may use, divided by the instances."""
    precision: Literal["auto", "bf16"] = "auto"
    """What products are computed in: BF16 (of a processor that has it), or what OpenVINO chooses for the processor."""


def refusal(graph: Sequence[tuple[str, Any]], config: Config) -> str | None:
    """Returns why OpenVINO cannot run what `graph` makes: of ONNX Runtime's own operators it has `weight_only`'s."""
    for word, settings in graph:
        if word in {"fuse", "quantize"} or (word == "fixed_point" and settings.bits == 16):
            return (
                f"OpenVINO has none of ONNX Runtime's own operators that {word} makes; leave {word} out, and use nncf "
                "or qdq for INT8"
            )
    return None


def runs_here() -> bool:
    """Says whether this machine can run the engine."""
    return True


def rungs(fp32: onnx.ModelProto, model: onnx.ModelProto, config: Config) -> dict[str, onnx.ModelProto]:
    """Returns the graphs to choose from: what the recipe's graph passes have made."""
    return {"openvino": folded(normalized(model))}


def build(graphs: Mapping[str, onnx.ModelProto], version_dir: Path, config: Config, asked: Asked) -> None:
    """Writes the engine, OpenVINO's intermediate representation, into Triton's version folder `version_dir`.

    Raises:
        InputError: OpenVINO is not installed, or refuses the graph.
        OSError: The folder cannot be written.
    """
    openvino = _openvino()
    version_dir.mkdir(parents=True, exist_ok=True)
    graph = [*graphs.values()][-1]
    try:
        model = openvino.Core().read_model(graph.SerializeToString())
    except RuntimeError as exc:
        raise InputError(f"engine.openvino: OpenVINO refuses the model ({' '.join(str(exc).split())[:300]})") from exc
    path = version_dir / "model.xml"
    try:
        openvino.save_model(model, str(path), compress_to_fp16=False)
    except RuntimeError as exc:
        raise OSError(f"OpenVINO cannot write {path}: {exc}") from exc


def load(version_dir: Path, config: Config, *, threads: int | None = None) -> Infer:
    """Returns the engine in `version_dir`, with `threads`, by default as many as there are cores.

    Raises:
        InputError: OpenVINO is not installed, or refuses the file.
    """
    openvino = _openvino()
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
        "NUM_STREAMS": 1,
        **({"INFERENCE_PRECISION_HINT": "bf16"} if config.precision == "bf16" else {}),
    }
    try:
        with signal_stack.kept():
            compiled = openvino.Core().compile_model(str(version_dir / "model.xml"), "CPU", settings)
    except RuntimeError as exc:
        raise InputError(f"engine.openvino: OpenVINO refuses the model ({' '.join(str(exc).split())[:300]})") from exc
    inputs = [port.any_name for port in compiled.inputs]
    outputs = [port.any_name for port in compiled.outputs]

    def infer(feed: Mapping[str, Array]) -> dict[str, Array]:
        answer = compiled({name: feed[name] for name in inputs})
        return {name: answer[name] for name in outputs}

    return infer


def threads(config: Config) -> list[int]:
    """Returns how many threads each instance has."""
    cores = len(os.sched_getaffinity(0))
    instances = config.instances or min(cores, _MOST_INSTANCES)
    return [config.inference_num_threads or max(1, cores // instances)] * instances


def measured(version_dir: Path, config: Config, asked: Asked) -> dict[str, Any]:
    """Returns nothing: this engine is held to the gate's metric alone."""
    return {}


def model_config(config: Config, asked: Asked) -> pb.ModelConfig:
    """Returns the engine's part of Triton's config: who runs it, where, with how many threads."""
    of_instances = threads(config)
    parameters = {"INFERENCE_NUM_THREADS": str(of_instances[0]), "NUM_STREAMS": "1"}
    if config.precision == "bf16":
        parameters["HINT_BF16"] = "YES"
    return pb.ModelConfig(
        backend=BACKEND,
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_CPU, count=len(of_instances))],
        parameters={key: pb.ModelParameter(string_value=value) for key, value in parameters.items()},
    )


def versions() -> dict[str, str]:
    """Returns what the engine was built and gated with, for the manifest."""
    return {"openvino": str(_openvino().__version__)}


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as exc:
        raise InputError("engine.openvino: needs the package openvino; pip install 'tritonpress[openvino]'") from exc
    return openvino
