"""ONNX Runtime on NVIDIA's GPUs: Triton's `onnxruntime` backend with its CUDA or TensorRT execution provider.

The road for who has no such GPU where the repository is built: the graph goes as it is, and the provider compiles it on
the machine that serves it, TensorRT's while the model warms up and into a cache for the next start.

Up to release 10 TensorRT builds a graph with FP16 tensors or INT8 pairs only where a flag allows the type
(https://github.com/microsoft/onnxruntime/issues/13381, https://github.com/NVIDIA/TensorRT/issues/3277), and of FP16 and
INT8 Triton's backend sets one, `precision_mode` (`src/onnxruntime.cc` of its `onnxruntime_backend`). So a graph with
pairs has no FP16 in it here; `engine: tensorrt` sets both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxruntime
from pydantic import Field, model_validator
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import mixed_precision
from tritonpress_generator.engines import Asked
from tritonpress_generator.engines.onnxruntime import check_native, session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Infer
from tritonpress_generator.onnx_graph import every_node
from tritonpress_generator.recipe_text import Settings

PLATFORM = "onnxruntime_onnx"
PACKAGES = ()
LAYOUTS = ("ensemble", "scripting")
FORMS = ("buckets", "exact")
INTEGERS = "int64"
SPARSE: tuple[str, ...] = ()


class Config(Settings):
    provider: Literal["cuda", "tensorrt"] = "cuda"
    """Who runs the graph: CUDA's kernels, which take `fuse`, or TensorRT, which takes `qdq`."""
    precision: Literal["fp32", "fp16", "int8"] = "fp16"
    """Of the graph's tensors (`mixed_precision.py`); `int8`, of TensorRT alone: FP32 with the pairs of the recipe's
    `qdq`."""
    instances: int = Field(default=1, ge=1, le=64)
    """Sessions side by side on each GPU."""
    engine_cache: str = "/tmp/tritonpress-engines"
    """Where TensorRT's provider keeps what it has compiled, on the machine that serves."""
    workspace_mib: int = Field(default=1024, ge=1)
    """The most scratch memory of TensorRT's provider."""

    @model_validator(mode="after")
    def _check_precision(self) -> Config:
        if self.precision == "int8" and self.provider != "tensorrt":
            raise ValueError("precision: int8 is of provider tensorrt; take that, or precision fp16")
        return self


def refusal(graph: Sequence[tuple[str, Any]], config: Config) -> str | None:
    """Returns why the provider cannot run what `graph` makes, or what it needs and `graph` does not make."""
    for word, settings in graph:
        own = word in {"fuse", "weight_only"} or (word == "fixed_point" and settings.bits == 16)
        tensorrt = config.provider == "tensorrt"
        rules = (
            (word == "quantize", "quantize makes INT8 for the CPU; leave it out of `graph`"),
            (
                own and tensorrt,
                f"TensorRT has none of ONNX Runtime's own operators that {word} makes; leave fuse and weight_only out "
                "of `graph`, or take provider cuda",
            ),
            (
                own and config.precision != "fp32",
                f"what {word} makes computes in FP32; leave fuse and weight_only out, or take precision fp32",
            ),
            (
                word in {"fixed_point", "nncf"} and tensorrt,
                f"TensorRT wants weights in FP32 in front of pairs; use qdq, not {word}",
            ),
            (
                word == "qdq" and settings.precision == "fp8",
                "Triton's backend cannot tell a provider of FP8; take qdq with precision int8, or engine: tensorrt",
            ),
            (
                word == "qdq" and tensorrt and config.precision != "int8",
                f"precision must be int8 with qdq, got {config.precision}: Triton's backend tells TensorRT of FP16 or "
                "of INT8; take int8, which leaves the rest in FP32, or engine: tensorrt for both",
            ),
        )
        for applies, reason in rules:
            if applies:
                return reason
    if config.precision == "int8" and all(word != "qdq" for word, _ in graph):
        return "precision int8 needs pairs in the graph; add qdq to `graph`"
    return None


def runs_here() -> bool:
    """Says no: here the graph is run on the CPU, and its speed where it is served is another.

    Raises:
        InputError: Both packages that bring ONNX Runtime are installed.
    """
    _one_package()
    return False


def rungs(fp32: onnx.ModelProto, model: onnx.ModelProto, config: Config) -> dict[str, onnx.ModelProto]:
    """Returns the graphs to choose from: what the recipe's graph passes have made, in the recipe's precision."""
    precision: mixed_precision.Precision = "fp16" if config.precision == "fp16" else "fp32"
    own = any(node.domain == "com.microsoft" for node in every_node(model.graph))
    return {"onnxruntime_gpu": model if own else mixed_precision.typed(model, precision)}


def build(graphs: Mapping[str, onnx.ModelProto], version_dir: Path, config: Config, asked: Asked) -> None:
    """Writes the engine into Triton's version folder `version_dir`.

    Raises:
        InputError: Triton's own backend is to run it, and cannot.
    """
    check_native([*graphs.values()][-1], asked, where="engine.onnxruntime_gpu")
    version_dir.mkdir(parents=True, exist_ok=True)
    onnx.save([*graphs.values()][-1], version_dir / "model.onnx")


def load(version_dir: Path, config: Config, *, threads: int | None = None) -> Infer:
    """Returns the graph in `version_dir`, run on the CPU: its metric is the GPU's but for rounding.

    Raises:
        InputError: ONNX Runtime refuses the file.
    """
    return session_infer(version_dir / "model.onnx", threads=threads)


def threads(config: Config) -> list[int]:
    """Returns how many threads of the CPU each instance has."""
    return [1] * config.instances


def measured(version_dir: Path, config: Config, asked: Asked) -> dict[str, Any]:
    """Returns nothing: this engine is held to the gate's metric alone."""
    return {}


def model_config(config: Config, asked: Asked) -> pb.ModelConfig:
    """Returns the engine's part of Triton's config: instances on the GPU, and the provider's settings."""
    model = pb.ModelConfig(
        platform=PLATFORM,
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_GPU, count=config.instances)],
    )
    if config.provider == "tensorrt":
        accelerator = model.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
        accelerator.parameters["precision_mode"] = config.precision.upper()
        accelerator.parameters["max_workspace_size_bytes"] = str(config.workspace_mib << 20)
        accelerator.parameters["trt_engine_cache_enable"] = "true"
        accelerator.parameters["trt_engine_cache_path"] = config.engine_cache
        # One engine for all that will be asked: without, one is built anew whenever a shape exceeds what was seen.
        shortest = min(asked.borders, default=1)
        usual = sorted(asked.lengths)[len(asked.lengths) // 2] if asked.lengths else asked.max_length
        bounds = {
            "min": (1, shortest),
            "opt": (asked.max_batch_size, max(shortest, min(usual, asked.max_length))),
            "max": (asked.max_batch_size, asked.max_length),
        }
        for name, (batch, length) in bounds.items():
            shapes = ",".join(f"{tensor}:{batch}x{length}" for tensor in asked.signature.inputs)
            accelerator.parameters[f"trt_profile_{name}_shapes"] = shapes
    return model


def versions() -> dict[str, str]:
    """Returns what the engine was built and gated with, for the manifest."""
    return {"onnxruntime": onnxruntime.__version__}


def _one_package() -> None:
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if len(found) > 1:
        raise InputError(
            f"{' and '.join(found)} are both installed and overwrite each other's module; pip uninstall both, and "
            "install one"
        )
