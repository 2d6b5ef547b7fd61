"""What a Triton config says to ONNX Runtime, and whether it fits the graph: NVIDIA's native backend, rule by rule."""

from typing import Any

import onnxruntime as ort

TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
EXECUTION_MODES = {0: ort.ExecutionMode.ORT_SEQUENTIAL, 1: ort.ExecutionMode.ORT_PARALLEL}
ARENA_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
DEVICE_INITIALIZERS = "session.use_device_allocator_for_initializers"
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
# Keys that the native backend reads; the later ones matter on a GPU, or to sessions shared within one process.
KNOWN_PARAMETERS = {
    *("intra_op_thread_count", "inter_op_thread_count", "execution_mode", "enable_mem_arena", "enable_mem_pattern"),
    *("cudnn_conv_algo_search", "gpu_mem_limit", "arena_extend_strategy", "do_copy_in_default_stream"),
    *("share_session_between_instances", ARENA_SHRINKAGE, DEVICE_INITIALIZERS),
}
LIKELY_MEANT = {
    "intra_op_num_threads": "intra_op_thread_count",
    "inter_op_num_threads": "inter_op_thread_count",
    "intra_op_threads": "intra_op_thread_count",
    "inter_op_threads": "inter_op_thread_count",
    "num_threads": "intra_op_thread_count",
    "enable_cpu_mem_arena": "enable_mem_arena",
    "graph_optimization_level": "optimization { graph { level } }",
}


class ConfigError(Exception):
    """The config and the graph do not fit, or a parameter has a value that the native backend refuses."""


def parameters(config: dict[str, Any]) -> dict[str, str]:
    """The model's parameters as plain text by key."""
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def session_options(config: dict[str, Any]) -> tuple[ort.SessionOptions, list[str]]:
    """The session's options, and a warning for each setting that has no effect, here as in the native backend.

    Raises:
        ConfigError: A parameter has a value that the native backend refuses.
    """
    options = ort.SessionOptions()
    given = parameters(config)
    warnings = [
        f"parameter {key!r} has no effect; "
        + (
            f"write {LIKELY_MEANT[key]!r}"
            if key in LIKELY_MEANT
            else f"the backend knows {', '.join(sorted(KNOWN_PARAMETERS))}"
        )
        for key in given
        if key not in KNOWN_PARAMETERS
    ]
    for key, attribute in (
        ("intra_op_thread_count", "intra_op_num_threads"),
        ("inter_op_thread_count", "inter_op_num_threads"),
    ):
        count = _integer(given, key, default=None)
        if count is not None and count > 0:
            setattr(options, attribute, count)
        elif count is not None:
            warnings.append(
                f"parameter {key!r} has no effect below 1, got {count}; give the number of threads or leave it out"
            )
    mode = _integer(given, "execution_mode", default=0)
    if mode not in EXECUTION_MODES:
        raise ConfigError(f"parameter 'execution_mode' must be 0 (sequential) or 1 (parallel), got {mode}")
    options.execution_mode = EXECUTION_MODES[mode]
    options.enable_cpu_mem_arena = _boolean(given, "enable_mem_arena", default=True)
    options.enable_mem_pattern = _boolean(given, "enable_mem_pattern", default=True)
    if DEVICE_INITIALIZERS in given:
        options.add_session_config_entry(DEVICE_INITIALIZERS, given[DEVICE_INITIALIZERS])
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    if level not in GRAPH_LEVELS and level != 0:
        warnings.append(
            f"optimization.graph.level {level} has no effect; it must be -1 (basic), 0 (all), 1 (extended) or 2 (none)"
        )
    options.graph_optimization_level = GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    return options, warnings


def model_dims(tensor: dict[str, Any]) -> list[int]:
    """The dims that the graph has for a tensor of the config, without the batch's."""
    return [int(size) for size in (tensor["reshape"]["shape"] if "reshape" in tensor else tensor["dims"])]


def check_inputs(config: dict[str, Any], session: ort.InferenceSession) -> None:
    """Holds the config's inputs to the graph's.

    Raises:
        ConfigError: They differ in number, name, type, rank or fixed dimensions.
    """
    graph = {node.name: node for node in session.get_inputs()}
    expected = sum(not tensor["optional"] for tensor in config["input"]) + len(config["batch_input"])
    if expected != len(graph):
        raise ConfigError(f"the config has {expected} inputs, the graph has {len(graph)}: {', '.join(graph)}")
    graph |= {node.name: node for node in session.get_overridable_initializers()}
    for tensor in config["input"]:
        name = tensor["name"]
        shape = _check_tensor("input", tensor, graph)
        if tensor["optional"] and config["max_batch_size"]:
            raise ConfigError(f"input {name!r} must not be optional where max_batch_size is above 0")
        if tensor["optional"] and tensor["allow_ragged_batch"]:
            raise ConfigError(f"input {name!r} must not be both optional and allow_ragged_batch; drop one of them")
        if not tensor["allow_ragged_batch"]:
            _check_dims("input", tensor, shape, max_batch_size=config["max_batch_size"], exact=False)
        elif shape != [-1]:
            raise ConfigError(
                f"input {name!r} with allow_ragged_batch must have shape [-1] in the graph, which has {shape}"
            )
    for batch_input in config["batch_input"]:
        for name in batch_input["target_name"]:
            _check_tensor("batch_input", {"name": name, "data_type": batch_input["data_type"]}, graph)


def check_outputs(config: dict[str, Any], session: ort.InferenceSession) -> None:
    """Holds the config's outputs, which may be some of the graph's, to the graph's.

    Raises:
        ConfigError: They differ in name, type, rank or dimensions.
    """
    graph = {node.name: node for node in session.get_outputs()}
    scattered = {name for batch_output in config["batch_output"] for name in batch_output["target_name"]}
    for tensor in config["output"]:
        shape = _check_tensor("output", tensor, graph)
        if tensor["name"] not in scattered:
            _check_dims("output", tensor, shape, max_batch_size=config["max_batch_size"], exact=True)


def _check_tensor(kind: str, tensor: dict[str, Any], graph: dict[str, Any]) -> list[int]:
    name = tensor["name"]
    if name not in graph:
        raise ConfigError(f"{kind} {name!r} is not in the graph, which has {', '.join(graph)}")
    node = graph[name]
    if TRITON_TYPES.get(node.type) != tensor["data_type"]:
        has = TRITON_TYPES.get(node.type, f"{node.type}, which Triton cannot pass to ONNX Runtime")
        raise ConfigError(f"{kind} {name!r} has data_type {tensor['data_type']}, the graph has {has}")
    return [size if isinstance(size, int) and size >= 0 else -1 for size in node.shape]


def _check_dims(kind: str, tensor: dict[str, Any], shape: list[int], *, max_batch_size: int, exact: bool) -> None:
    name = tensor["name"]
    dims = model_dims(tensor)
    if not shape:
        if any(size != 1 for size in dims):
            raise ConfigError(f"{kind} {name!r} is a scalar in the graph, so its dims must be 1, got {dims}")
        return
    if max_batch_size:
        if shape[0] != -1:
            raise ConfigError(
                f"{kind} {name!r} has shape {shape} in the graph, but max_batch_size {max_batch_size} needs a dynamic "
                "first dimension; export it with a dynamic batch or set max_batch_size to 0"
            )
        dims = [-1, *dims]
    if len(dims) != len(shape) or any(want != has for want, has in zip(dims, shape, strict=True) if exact or has != -1):
        batch = f", the batch of max_batch_size {max_batch_size} included" if max_batch_size else ""
        raise ConfigError(f"{kind} {name!r} has dims {dims}{batch}, the graph has {shape}")


def _integer(given: dict[str, str], key: str, *, default: int | None) -> int | None:
    if key not in given:
        return default
    try:
        return int(given[key])
    except ValueError as error:
        raise ConfigError(f"parameter {key!r} must be an integer, got {given[key]!r}") from error


def _boolean(given: dict[str, str], key: str, *, default: bool) -> bool:
    if key not in given:
        return default
    if given[key].lower() not in BOOLEANS:
        raise ConfigError(f"parameter {key!r} must be true or false, got {given[key]!r}")
    return BOOLEANS[given[key].lower()]
