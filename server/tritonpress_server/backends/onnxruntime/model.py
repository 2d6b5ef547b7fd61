"""Triton's `onnxruntime` backend in Python, for servers that lack NVIDIA's native one.

It takes the configs that the native backend of release 24.10 takes and refuses what that refuses, so that a repository
tried here can be deployed there unchanged (github.com/triton-inference-server/onnxruntime_backend). Triton's core does
the batching: each call of `execute` is one dynamic batch, and becomes one run. Needs numpy and onnxruntime alone.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from onnx_config import (  # type: ignore[import-not-found]
    ARENA_SHRINKAGE,
    ConfigError,
    check_inputs,
    check_outputs,
    model_dims,
    parameters,
    session_options,
)
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
from ragged import Array, BatchInput, BatchOutput, Shape, Tensors, split  # type: ignore[import-not-found]

# ONNX Runtime's exceptions share no base class; what pybind11 makes of other C++ exceptions are the last three.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(value for value in vars(ort_state).values() if isinstance(value, type) and issubclass(value, Exception)),
    *(RuntimeError, ValueError, MemoryError),
)
CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"


class TritonPythonModel:
    """One instance of one ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the graph and holds the config to it.

        Raises:
            pb_utils.TritonModelException: What the native backend refuses too, in one line.
        """
        config = json.loads(args["model_config"])
        try:
            self.batch_inputs = [BatchInput(entry) for entry in config["batch_input"]]
            batch_outputs = [BatchOutput(entry, config) for entry in config["batch_output"]]
            self.session = _load(config, args)
            check_inputs(config, self.session)
            check_outputs(config, self.session)
        except ConfigError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self.batch_outputs = {batch_output.name: batch_output for batch_output in batch_outputs}
        self.batches = config["max_batch_size"] > 0
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.ragged = {tensor["name"] for tensor in config["input"] if tensor["allow_ragged_batch"]}
        self.scalar_inputs = {node.name for node in self.session.get_inputs() if not node.shape}
        self.text_inputs = {tensor["name"] for tensor in config["input"] if tensor["data_type"] == "TYPE_STRING"}
        self.scalar_outputs = {
            tensor["name"]: model_dims(tensor)
            for tensor in config["output"]
            if tensor["name"] not in self.batch_outputs
            and not next(node.shape for node in self.session.get_outputs() if node.name == tensor["name"])
        }
        self.too_long: set[str] = set()
        self.run_options = None
        if shrinkage := parameters(config).get(ARENA_SHRINKAGE):
            self.run_options = ort.RunOptions()
            self.run_options.add_run_config_entry(ARENA_SHRINKAGE, shrinkage)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; the requests of one call are one run of the session."""
        if len(requests) == 1 or self.batches:
            return self._run(requests)
        return [response for request in requests for response in self._run([request])]

    def finalize(self) -> None:
        """Frees the session's memory and threads."""
        del self.session

    def _run(self, requests: list[Any]) -> list[Any]:
        tensors = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        wanted = [request.requested_output_names() for request in requests]
        asked = set().union(*wanted)
        names = [name for name in self.outputs if name in asked]
        try:
            results = self.session.run(names, self._feeds(tensors), self.run_options)
        except ORT_ERRORS as error:
            text = f"onnx runtime error: {' '.join(str(error).split())}"
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(text)) for _ in requests]
        parts: list[dict[str, Array | str]] = [{} for _ in requests]
        for name, result in zip(names, results, strict=True):
            for part, value in zip(parts, self._split(name, result, tensors), strict=True):
                part[name] = value
        return [_response({name: part[name] for name in own}) for own, part in zip(wanted, parts, strict=True)]

    def _feeds(self, tensors: list[Tensors]) -> Tensors:
        feeds = {}
        for name in tensors[0]:
            parts = [request[name].reshape(-1) if name in self.ragged else request[name] for request in tensors]
            feeds[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        for batch_input in self.batch_inputs:
            feeds[batch_input.name] = batch_input.value(tensors)
        for name in self.scalar_inputs & feeds.keys():
            feeds[name] = feeds[name].reshape(())
        for name in self.text_inputs & feeds.keys():
            # ONNX Runtime would take the bytes b"x" for the four characters "b'x'".
            feeds[name] = np.vectorize(bytes.decode, otypes=[object])(feeds[name])
        return feeds

    def _split(self, name: str, result: Array, tensors: list[Tensors]) -> list[Array | str]:
        if name in self.scalar_outputs:
            result = np.reshape(result, self.scalar_outputs[name])
        shapes: list[Shape]
        if name in self.batch_outputs:
            shapes = [self.batch_outputs[name].shape(request) for request in tensors]
        elif self.batches:
            # All inputs of a request have its batch size.
            shapes = [(next(iter(request.values())).shape[0], *result.shape[1:]) for request in tensors]
        else:
            shapes = [result.shape]
        rest = result.size - sum(map(math.prod, shapes))
        if rest > 0 and name not in self.too_long:
            self.too_long.add(name)
            pb_utils.Logger.log_warn(
                f"output {name!r} of shape {list(result.shape)} has {rest} elements more than its requests take by the "
                "config, and these are dropped; this is said once"
            )
        return split(name, result, shapes)


def _response(outputs: dict[str, Array | str]) -> Any:
    for value in outputs.values():
        if isinstance(value, str):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(value, pb_utils.TritonError.UNSUPPORTED))
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in outputs.items()])


def _load(config: dict[str, Any], args: dict[str, str]) -> ort.InferenceSession:
    options, warnings = session_options(config)
    name = args["model_instance_name"]
    for warning in warnings:
        pb_utils.Logger.log_warn(f"{name}: {warning}")
    path = Path(args["model_repository"]) / args["model_version"] / (config["default_model_filename"] or "model.onnx")
    if path.is_dir():
        path /= "model.onnx"
    if not path.is_file():
        raise ConfigError(f"unable to find {str(path)!r}")
    try:
        session = ort.InferenceSession(str(path), options, providers=_providers(args))
    except ORT_ERRORS as error:
        raise ConfigError(f"ONNX Runtime cannot load {str(path)!r}: {' '.join(str(error).split())}") from error
    pb_utils.Logger.log_info(
        f"{name}: ONNX Runtime {ort.__version__}, {session.get_providers()[0]}, "
        f"intra_op_thread_count {options.intra_op_num_threads}, inter_op_thread_count {options.inter_op_num_threads} "
        f"(0: all cores), {options.graph_optimization_level}"
    )
    return session


def _providers(args: dict[str, str]) -> list[Any]:
    if args["model_instance_kind"] != "GPU":
        return [CPU_PROVIDER]
    if CUDA_PROVIDER not in ort.get_available_providers():
        raise ConfigError("KIND_GPU needs onnxruntime-gpu and a GPU; neither is here, so use KIND_CPU")
    return [(CUDA_PROVIDER, {"device_id": int(args["model_instance_device_id"])}), CPU_PROVIDER]
