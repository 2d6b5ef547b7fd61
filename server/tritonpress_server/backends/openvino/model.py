"""Triton's `openvino` backend in Python, for servers that lack NVIDIA's native one.

It takes the parameters that the native backend documents (github.com/triton-inference-server/openvino_backend), so that
a repository tried here can be deployed there. Triton's core does the batching: each call of `execute` is one dynamic
batch, and becomes one run. Needs numpy and openvino alone.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
import triton_python_backend_utils as pb_utils

Array = npt.NDArray[Any]
# Passed on under their own names.
NUMBERS = ("INFERENCE_NUM_THREADS", "COMPILATION_NUM_THREADS")
KNOWN = {
    *NUMBERS,
    *("CPU_EXTENSION_PATH", "HINT_BF16", "NUM_STREAMS", "PERFORMANCE_HINT", "TARGET_DEVICE"),
    *("SKIP_OV_DYNAMIC_BATCHSIZE", "ENABLE_BATCH_PADDING", "RESHAPE_IO_LAYERS"),
}
TYPES = {
    "boolean": "TYPE_BOOL", "u8": "TYPE_UINT8", "i8": "TYPE_INT8", "i32": "TYPE_INT32", "i64": "TYPE_INT64",
    "f16": "TYPE_FP16", "f32": "TYPE_FP32", "f64": "TYPE_FP64",
}  # fmt: skip


class ConfigError(Exception):
    """The config and the model do not fit, or a parameter has a value that the native backend refuses."""


class TritonPythonModel:
    """One instance of one OpenVINO model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model and holds the config to it.

        Raises:
            pb_utils.TritonModelException: They do not fit, or OpenVINO refuses the model; in one line.
        """
        config = json.loads(args["model_config"])
        try:
            if args["model_instance_kind"] != "CPU":
                raise ConfigError(f"instance_group must be KIND_CPU here, got KIND_{args['model_instance_kind']}")
            self.model = _load(config, args)
            _check(config, self.model)
        except ConfigError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self.batches = config["max_batch_size"] > 0
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; the requests of one call are one run of the model."""
        if len(requests) == 1 or self.batches:
            return self._run(requests)
        return [response for request in requests for response in self._run([request])]

    def finalize(self) -> None:
        """Frees the model's memory and threads."""
        del self.model

    def _run(self, requests: list[Any]) -> list[Any]:
        tensors = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        feed = {name: _joined([request[name] for request in tensors]) for name in self.inputs}
        try:
            answer = self.model(feed)
        except RuntimeError as error:
            text = f"openvino error: {' '.join(str(error).split())}"
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(text)) for _ in requests]
        ends = np.cumsum([request[self.inputs[0]].shape[0] for request in tensors])[:-1]
        parts = {name: np.split(answer[name], ends) if self.batches else [answer[name]] for name in self.outputs}
        responses = []
        for number, request in enumerate(requests):
            wanted = [name for name in self.outputs if name in request.requested_output_names()]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(n, parts[n][number]) for n in wanted]))
        return responses


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _load(config: dict[str, Any], args: dict[str, str]) -> Any:
    path = Path(args["model_repository"]) / args["model_version"] / (config["default_model_filename"] or "model.xml")
    if not path.is_file():
        raise ConfigError(f"unable to find {str(path)!r}")
    settings = _settings({key: value["string_value"] for key, value in config.get("parameters", {}).items()})
    try:
        return openvino.Core().compile_model(str(path), "CPU", settings)
    except RuntimeError as error:
        raise ConfigError(f"OpenVINO cannot load {str(path)!r}: {' '.join(str(error).split())}") from error


def _settings(given: dict[str, str]) -> dict[str, str]:
    """OpenVINO's properties for the parameters of the config."""
    settings = {}
    for key, value in given.items():
        if key not in KNOWN:
            pb_utils.Logger.log_warn(f"parameter {key!r} has no effect; the backend knows {', '.join(sorted(KNOWN))}")
        elif key in NUMBERS:
            if not value.isdecimal():
                raise ConfigError(f"parameter {key!r} must be a non-negative number, got {value!r}")
            settings[key] = value
        elif key == "HINT_BF16":
            if value != "YES":
                raise ConfigError(f"parameter {key!r} must be 'YES', got {value!r}; leave it out otherwise")
            settings["INFERENCE_PRECISION_HINT"] = "bf16"
        elif key in {"NUM_STREAMS", "PERFORMANCE_HINT"}:
            settings[key] = value
        elif key == "TARGET_DEVICE" and value != "CPU":
            raise ConfigError(f"parameter {key!r} must be 'CPU' here, got {value!r}")
    return settings


def _check(config: dict[str, Any], model: Any) -> None:
    for kind, ports in (("input", model.inputs), ("output", model.outputs)):
        known = {port.any_name: port for port in ports}
        names = [tensor["name"] for tensor in config[kind]]
        if set(names) - set(known) or (kind == "input" and len(names) != len(known)):
            raise ConfigError(f"the config has the {kind}s {', '.join(names)}, the model has {', '.join(known)}")
        for tensor in config[kind]:
            port = known[tensor["name"]]
            found = TYPES.get(port.element_type.get_type_name(), port.element_type.get_type_name())
            if found != tensor["data_type"]:
                raise ConfigError(
                    f"{kind} {tensor['name']!r} must be {found}, as the model has it, got {tensor['data_type']}"
                )
            rank = len(tensor["dims"]) + (config["max_batch_size"] > 0)
            if rank != len(port.partial_shape):
                raise ConfigError(
                    f"{kind} {tensor['name']!r} must have {len(port.partial_shape)} dimensions, the batch's included, "
                    f"got {rank}"
                )
            if tensor.get("allow_ragged_batch"):
                raise ConfigError(f"{kind} {tensor['name']!r}: the backend takes no allow_ragged_batch")
