"""What a Triton config says of a TensorRT plan, and whether it fits the plan: NVIDIA's backend, rule by rule."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plan_shapes import Profile, Shape  # type: ignore[import-not-found]

TYPES = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "int8": "TYPE_INT8", "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32", "int64": "TYPE_INT64", "bool": "TYPE_BOOL",
}  # fmt: skip
HOST_CODE = "version-compatible"
CONTEXT_ALLOCATION = "execution_context_allocation_strategy"
KNOWN_PARAMETERS = {HOST_CODE, CONTEXT_ALLOCATION}
SCRIPT = "build_plan.sh"


class ConfigError(Exception):
    """The config does not fit the plan or this machine."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a plan."""

    name: str
    is_input: bool
    dtype: str
    """numpy's name."""
    shape: Shape
    """-1 where it is dynamic."""


def check_features(config: Mapping[str, Any], kind: str) -> None:
    """Refuses what this backend does not do.

    Raises:
        ConfigError: In a line.
    """
    if kind != "GPU":
        raise ConfigError(
            f"a tensorrt_plan needs an NVIDIA GPU and an instance_group of KIND_GPU, got KIND_{kind}, as Triton "
            "chooses where it finds no GPU; serve it where one is, or build the recipe with engine: onnxruntime"
        )
    for tensor in (*config["input"], *config["output"]):
        for field in ("is_shape_tensor", "is_non_linear_format_io", "allow_ragged_batch", "optional"):
            if tensor.get(field):
                raise ConfigError(_not_here(f"tensor {tensor['name']!r} has {field}"))
    for field in ("batch_input", "batch_output", "sequence_batching"):
        if config.get(field):
            raise ConfigError(_not_here(f"the config has {field}"))


def without_effect(config: Mapping[str, Any]) -> list[str]:
    """A warning for each setting that changes nothing here."""
    optimization = config.get("optimization", {})
    found = {
        "optimization.cuda.output_copy_stream": optimization.get("cuda", {}).get("output_copy_stream"),
        "optimization.eager_batching": optimization.get("eager_batching"),
        "optimization.gather_kernel_buffer_threshold": optimization.get("gather_kernel_buffer_threshold"),
        "optimization.input_pinned_memory.enable: false": not _enabled(optimization, "input_pinned_memory"),
        "optimization.output_pinned_memory.enable: false": not _enabled(optimization, "output_pinned_memory"),
    }
    why = "the embedded server runs one batch at a time in each instance, through pinned memory"
    warnings = [f"{name} has no effect here: {why}" for name, given in found.items() if given]
    for key, value in _parameters(config).items():
        if key not in KNOWN_PARAMETERS or (key == CONTEXT_ALLOCATION and value != "STATIC"):
            known = f"{HOST_CODE} (true or false) and {CONTEXT_ALLOCATION} (STATIC)"
            warnings.append(f"parameter {key!r} with value {value!r} has no effect here; the backend knows {known}")
    return warnings


def host_code_allowed(config: Mapping[str, Any]) -> bool:
    """Whether the plan may be of another TensorRT, and bring the code that runs it.

    NVIDIA's backend has it as an option of the server for all its models, of which a Python-based backend is not told.

    Raises:
        ConfigError: The parameter is neither true nor false.
    """
    value = _parameters(config).get(HOST_CODE, "false").lower()
    if value not in {"true", "yes", "1", "false", "no", "0"}:
        raise ConfigError(f"parameter {HOST_CODE!r} must be true or false, got {value!r}")
    return value in {"true", "yes", "1"}


def plan_path(config: Mapping[str, Any], version_dir: Path, capability: str) -> Path:
    """The plan that the config names for a GPU of a compute capability such as "8.0".

    Raises:
        ConfigError: There is no such file.
    """
    name = config.get("cc_model_filenames", {}).get(capability) or config.get("default_model_filename") or "model.plan"
    path = version_dir / name
    if not path.is_file():
        remedy = f"; {version_dir / SCRIPT} builds it" if (version_dir / SCRIPT).is_file() else ""
        raise ConfigError(f"unable to find {str(path)!r} for a GPU of compute capability {capability}{remedy}")
    return path


def stamp(path: Path) -> dict[str, Any]:
    """What the builder wrote beside a plan; empty where it is of another builder."""
    try:
        found = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def profile_numbers(config: Mapping[str, Any], instance: str, *, count: int) -> list[int]:
    """The profiles of an instance, ascending; the plan's first where its group names none.

    Args:
        config: The model's.
        instance: The instance's name, which begins with its group's.
        count: How many the plan has.

    Raises:
        ConfigError: A name is not the number of one.
    """
    groups = [group for group in config["instance_group"] if f"{instance}_".startswith(f"{group['name']}_")]
    names = max(groups, key=lambda group: len(group["name"]))["profile"] if groups else []
    for name in names:
        if not (name.isdecimal() and int(name) < count):
            raise ConfigError(
                f"instance_group.profile must be numbers of the plan's optimization profiles, 0 to {count - 1}, "
                f"got {name!r}"
            )
    return sorted({int(name) for name in names} or {0})


def check_tensors(config: Mapping[str, Any], tensors: Sequence[Tensor], profiles: Sequence[Profile]) -> None:
    """Holds the config's inputs and outputs, and its largest batch, to the plan's.

    Raises:
        ConfigError: They differ in number, name, type, rank or dimensions.
    """
    batch = config["max_batch_size"]
    for kind in ("input", "output"):
        plan = {tensor.name: tensor for tensor in tensors if tensor.is_input == (kind == "input")}
        names = [tensor["name"] for tensor in config[kind]]
        if set(names) - set(plan) or (kind == "input" and set(names) != set(plan)):
            raise ConfigError(f"the config has the {kind}s {', '.join(names)}, the plan has {', '.join(plan)}")
        for given in config[kind]:
            tensor = plan[given["name"]]
            if TYPES[tensor.dtype] != given["data_type"]:
                raise ConfigError(
                    f"{kind} {tensor.name!r} must be {TYPES[tensor.dtype]}, as in the plan, got {given['data_type']}"
                )
            dims = [*([-1] if batch else []), *_model_dims(given)]
            shape = list(tensor.shape)
            fits = len(dims) == len(shape) and all(
                has in {-1, want} for want, has in list(zip(dims, shape, strict=True))[bool(batch) :]
            )
            if not fits:
                raise ConfigError(f"{kind} {tensor.name!r} has dims {dims}, the batch's included, the plan has {shape}")
    most = max(min(shape[0] for shape in profile.most.values()) for profile in profiles) if batch else 0
    if batch > most:
        raise ConfigError(
            f"max_batch_size must be at most {most}, what the instance's optimization profiles hold, got {batch}; "
            "lower it, or build the plan for larger batches"
        )


def _model_dims(tensor: Mapping[str, Any]) -> list[int]:
    return [int(size) for size in (tensor["reshape"]["shape"] if "reshape" in tensor else tensor["dims"])]


def _parameters(config: Mapping[str, Any]) -> dict[str, str]:
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def _enabled(optimization: Mapping[str, Any], name: str) -> bool:
    return bool(optimization.get(name, {}).get("enable", True))


def _not_here(what: str) -> str:
    return f"{what}, which the embedded server's tensorrt backend does not do; NVIDIA's does"
