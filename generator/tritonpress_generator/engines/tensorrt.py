"""TensorRT on NVIDIA's GPUs: Triton's `tensorrt` backend.

Precision is in the graph: FP16 or BF16 tensors (`mixed_precision.py`), INT8 or FP8 as pairs of QuantizeLinear and
DequantizeLinear (`graph/qdq.py`). A plan is built where a GPU and TensorRT are; elsewhere everything up to it is, and
`build_plan.sh` lies beside it, which builds, times and gates the plan in NVIDIA's containers (`plans/pending.py`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxruntime
from onnx import TensorProto, helper
from pydantic import Field
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import layer_normalization, mixed_precision
from tritonpress_generator.engines import Asked
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.onnx_graph import DOMAIN, every_node
from tritonpress_generator.plans import builder, pending, releases, runner
from tritonpress_generator.plans.profiles import Profile, profiles
from tritonpress_generator.quantized_pairs import folded
from tritonpress_generator.recipe_text import Settings

PLATFORM = "tensorrt_plan"
PACKAGES = ()
LAYOUTS = ("ensemble", "scripting")
FORMS = ("buckets", "exact")
INTEGERS = "int32"
SPARSE: tuple[str, ...] = ("2:4",)
"""TensorRT takes INT64 inputs from release 10 on."""
_LOW = {"fp32": None, "fp16": "FLOAT16", "bf16": "BFLOAT16"}
_LACKING = {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "Loop"}
"""ONNX's own operators that TensorRT does not take, or quantises otherwise."""


class Config(Settings):
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """The type of the tensors that the recipe's `qdq` leaves: the ladder goes from fp32 to it, and on to `qdq`'s."""
    release: str = releases.EMBEDDED
    """Of NVIDIA's Triton container that will serve the plan, such as 24.10."""
    instances: int = Field(default=1, ge=1, le=64)
    """Execution contexts side by side on each GPU."""
    optimization_profiles: list[Profile] | None = None
    """Batch and length, each as [min, opt, max]; default: one for each border of the buckets."""
    workspace_mib: int | None = Field(default=None, ge=1)
    """The most scratch memory of a layer; default: all of the GPU's."""
    builder_optimization_level: int | None = Field(default=None, ge=0, le=5)
    """How long the builder searches; default: TensorRT's own (3)."""
    version_compatible: bool = False
    """Whether later TensorRT of the same major may run the plan, at some speed."""
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    """Which other GPUs may run the plan, at some speed."""
    refit: bool = False
    """Whether weights may be exchanged in a plan."""
    sparsity: bool = False
    """Whether 2:4 sparse weights use the sparse units."""
    compute_capabilities: list[str] = Field(default_factory=list)
    """Several kinds of GPUs in one repository, such as ["8.0", "9.0"]: a plan each, built on each."""
    cuda_graphs: bool = True
    """Whether the executions of the borders' shapes are captured as CUDA graphs."""


def refusal(graph: Sequence[tuple[str, Any]], config: Config) -> str | None:
    """Returns why TensorRT cannot run what `graph` makes: it has none of ONNX Runtime's operators, nor codes."""
    for word, _ in graph:
        if word in {"fuse", "quantize", "weight_only"}:
            return (
                f"TensorRT has none of ONNX Runtime's own operators that {word} makes; leave fuse, quantize and "
                "weight_only out of `graph`, and use qdq for INT8"
            )
        if word in {"fixed_point", "nncf"}:
            return (
                "weights must be in FP32 in front of their pairs, as qdq leaves them, "
                f"{word} makes codes of them; use qdq in place of {word}"
            )
    return None


def runs_here() -> bool:
    """Says whether TensorRT and a GPU are here."""
    try:
        trt = runner.tensorrt()
        count = runner.Cuda()("cudaGetDeviceCount")
    except runner.PlanError:
        return False
    return bool(trt and count)


def rungs(fp32: onnx.ModelProto, model: onnx.ModelProto, config: Config) -> dict[str, onnx.ModelProto]:
    """Returns the ladder: FP32, the recipe's precision, and last what its graph passes have made, in that precision.

    Raises:
        InputError: The graph has operators that TensorRT lacks.
    """
    lacking = [n for n in every_node(model.graph) if n.domain not in {"", "ai.onnx", DOMAIN} or n.op_type in _LACKING]
    if lacking:  # of the checkpoint's own: those of graph passes are refused before
        names = ", ".join(f"{node.op_type} ({node.name})" for node in lacking[:3]) + ", …" * (len(lacking) > 3)
        raise InputError(
            f"engine.tensorrt: TensorRT has none of these operators: {names}; take engine: onnxruntime_gpu"
        )
    # Where the builder's flags choose the types, the graph says FP32 alone, in an opset that the parser knows.
    low = "fp32" if releases.weakly_typed(config.release) else config.precision
    graphs: dict[str, tuple[onnx.ModelProto, mixed_precision.Precision]] = {"fp32": (fp32, "fp32")}
    if config.precision != "fp32":
        graphs[config.precision] = (fp32, low)
    kinds = set(pending.types(model)) & {"INT8", "FLOAT8E4M3FN"}
    if kinds:
        name = "fp8" if "FLOAT8E4M3FN" in kinds else "int8"
        graphs[name] = (model, low)
    ladder = {name: with_int32_inputs(mixed_precision.typed(*graph)) for name, graph in graphs.items()}
    if not releases.weakly_typed(config.release):
        # What chooses types by flags is given weights as it was tried: in FP32, with the whole pair behind them.
        ladder = {name: folded(graph) for name, graph in ladder.items()}
    if releases.lacks_layer_normalization(config.release):
        ladder = {name: layer_normalization.divided(graph) for name, graph in ladder.items()}
    return ladder


def build(graphs: Mapping[str, onnx.ModelProto], version_dir: Path, config: Config, asked: Asked) -> None:
    """Writes the plan of the last of `graphs`, or what builds one of them elsewhere.

    Raises:
        InputError: TensorRT refuses the graph, a profile or an option.
    """
    settings = plan_settings(config, asked)
    pending.write(
        version_dir, graphs, settings, release=config.release, workload=asked.workload, low=_LOW[config.precision]
    )
    if not runs_here():
        return
    rung = json.loads((version_dir / pending.SETTINGS).read_text(encoding="utf-8"))["rungs"][-1]
    try:
        trt, about = runner.tensorrt(), runner.device(runner.Cuda())
        name = f"model_{about['compute_capability']}.plan" if config.compute_capabilities else "model.plan"
        plan = version_dir / name
        stamp = builder.build(trt, rung, settings, version_dir, about=about, plan=plan, cache=_timings())
        builder.runner_of(trt, plan, stamp, version_dir).close()
    except runner.PlanError as exc:
        raise InputError(f"engine.tensorrt: {exc}") from exc


def _timings() -> Path:
    """Returns the folder of what TensorRT has timed on this machine: a repository is the wrong place for it."""
    home = Path(os.environ.get("HOME") or tempfile.gettempdir())
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "tritonpress" / "tensorrt"


def load(version_dir: Path, config: Config, *, threads: int | None = None) -> Infer:
    """Returns the plan in `version_dir` where it can run; else the graph that it is to be built of, in ONNX Runtime.

    Raises:
        InputError: The plan is corrupt or of another TensorRT or GPU, or ONNX Runtime refuses the graph.
    """
    settings = json.loads((version_dir / pending.SETTINGS).read_text(encoding="utf-8"))
    if runs_here() and (found := pending.plans(version_dir)):
        path, stamp = next(iter(found.items()))
        try:
            run = runner.Runner(runner.tensorrt(), path.read_bytes(), stamp)
        except runner.PlanError as exc:
            raise InputError(f"{path}: {exc}") from exc
        return _told(path, runner.fitting(run, settings["profiles"], settings["of_tokens"]))
    rung = settings["rungs"][-1]
    model: Path | bytes = version_dir / rung["model"]
    if "BFLOAT16" in rung["types"] and not releases.weakly_typed(config.release):
        model = mixed_precision.in_fp32(onnx.load(version_dir / rung["model"])).SerializeToString()
    graph = session_infer(model, threads=threads)
    return lambda feed: graph({name: tensor.astype(INTEGERS, copy=False) for name, tensor in feed.items()})


def _told(path: Path, plan: Infer) -> Infer:
    """Returns `plan` with its errors as every engine's: in a line, with the file that they are of."""

    def infer(feed: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return plan(feed)
        except runner.PlanError as exc:
            raise InputError(f"{path}: {exc}") from exc

    return infer


def times_ms(infers: Mapping[str, Infer], config: Config, asked: Asked) -> dict[str, float]:
    """Returns the ms of each rung that was loaded here, measured as `build_plan.sh` does: in turn, on its shapes.

    Raises:
        InputError: A plan cannot be run.
    """
    settings = plan_settings(config, asked)
    times: dict[str, float] = runner.timed(dict(infers), settings["inputs"], settings["shapes"])
    return times


def threads(config: Config) -> list[int]:
    """Returns how many threads of the CPU each instance has."""
    return [1] * config.instances


def plan_settings(config: Config, asked: Asked) -> dict[str, Any]:
    """Returns what the builder is told, beside the graphs (`plans/builder.py`).

    Raises:
        InputError: A profile does not hold what will be asked.
    """
    releases.check_release(config.release, where="engine.tensorrt.release")
    batch, length = asked.max_batch_size, _usual_length(asked)
    return {
        "inputs": list(asked.signature.inputs),
        "of_tokens": asked.signature.of_tokens,
        "profiles": [profile.model_dump() for profile in profiles(asked, config.optimization_profiles)],
        "shapes": [[1, length], [batch, length]] if batch > 1 else [[1, length]],
        "compute_capabilities": config.compute_capabilities,
        "workspace_bytes": None if config.workspace_mib is None else config.workspace_mib << 20,
        "builder_optimization_level": config.builder_optimization_level,
        "version_compatible": config.version_compatible,
        "hardware_compatibility": config.hardware_compatibility,
        "refit": config.refit,
        "sparsity": config.sparsity,
    }


def _usual_length(asked: Asked) -> int:
    """Returns the tokens of an execution that stands for what will be asked: the median, padded as it will be."""
    median = sorted(asked.lengths)[len(asked.lengths) // 2] if asked.lengths else asked.max_length
    return next((border for border in asked.borders if border >= median), median)


def measured(version_dir: Path, config: Config, asked: Asked) -> dict[str, Any]:
    """Returns the stamps of the plans, where they were built here."""
    stamps = {path.name: stamp for path, stamp in pending.plans(version_dir).items()}
    return {"plans": stamps} if stamps else {}


def model_config(config: Config, asked: Asked) -> pb.ModelConfig:
    """Returns the engine's part of Triton's config: instances on the GPU, with all profiles, and CUDA graphs."""
    count = len(profiles(asked, config.optimization_profiles))
    model = pb.ModelConfig(
        platform=PLATFORM,
        instance_group=[
            pb.ModelInstanceGroup(
                kind=pb.ModelInstanceGroup.KIND_GPU, count=config.instances, profile=[str(i) for i in range(count)]
            )
        ],
    )
    for capability in config.compute_capabilities:
        model.cc_model_filenames[capability] = f"model_{capability}.plan"
    if config.version_compatible:
        # For the embedded server; NVIDIA's takes --backend-config=tensorrt,version-compatible=true.
        model.parameters["version-compatible"].string_value = "true"
    if config.cuda_graphs and asked.borders:
        model.optimization.cuda.graphs = True
        model.optimization.cuda.output_copy_stream = True
        for border in asked.borders:
            for low, high in _steps(asked.max_batch_size):
                spec = model.optimization.cuda.graph_spec.add(batch_size=high)
                spec.graph_lower_bound.batch_size = low
                for name in asked.signature.inputs:
                    spec.input[name].dim.append(border)
                    spec.graph_lower_bound.input[name].dim.append(border)
    return model


def _steps(most: int) -> list[tuple[int, int]]:
    """Returns the batches that share a CUDA graph, as (least, most): 1, 2, 3 to 4, 5 to 8, …"""
    ends = [1]
    while ends[-1] < most:
        ends.append(min(ends[-1] * 2, most))
    return [(low + 1, high) for low, high in zip([0, *ends], ends, strict=False)]


def versions() -> dict[str, str]:
    """Returns what the engine was built and gated with, for the manifest."""
    found = {"onnxruntime": onnxruntime.__version__}
    return found | {"tensorrt": str(runner.tensorrt().__version__)} if runs_here() else found


def with_int32_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns `model` with inputs that are INT32 in place of INT64."""
    graph = model.graph
    casts = []
    for tensor in graph.input:
        if tensor.type.tensor_type.elem_type == TensorProto.INT64:
            tensor.type.tensor_type.elem_type = TensorProto.INT32
            wide = f"{tensor.name}/int64"
            for node in graph.node:
                for place, name in enumerate(node.input):
                    if name == tensor.name:
                        node.input[place] = wide
            casts.append(helper.make_node("Cast", [tensor.name], [wide], name=f"{wide}/cast", to=TensorProto.INT64))
    for cast in casts:
        graph.node.insert(0, cast)
    return model
