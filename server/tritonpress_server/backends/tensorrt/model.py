"""Triton's `tensorrt` backend in Python, for servers that lack NVIDIA's native one.

It takes the files and configs that the native backend takes (github.com/triton-inference-server/tensorrt_backend), so
that a repository tried here can be deployed there. Triton's core does the batching: each call of `execute` is one
dynamic batch, and becomes one execution of the plan wherever one shape and one profile hold it. An instance is a
process, with its own CUDA context and its own copy of the weights on the GPU. Needs numpy, tensorrt and cuda-python.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from cuda_calls import (  # type: ignore[import-not-found]
    Cuda,
    Messages,
    PlanError,
    load,
    numpy_type,
    tensorrt,
)
from plan_config import (  # type: ignore[import-not-found]
    ConfigError,
    Tensor,
    check_features,
    check_tensors,
    host_code_allowed,
    plan_path,
    profile_numbers,
    stamp,
    without_effect,
)
from plan_execution import Execution  # type: ignore[import-not-found]
from plan_graphs import graphs  # type: ignore[import-not-found]
from plan_shapes import Planner, Profile, Run  # type: ignore[import-not-found]

INSTALL = "pip install 'tritonpress[tensorrt]' in the server's environment"


class TritonPythonModel:
    """One instance of one plan, on one GPU."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the plan, holds the config to it, and captures its CUDA graphs.

        Raises:
            pb_utils.TritonModelException: They do not fit, or TensorRT or CUDA refuses; in one line.
        """
        config = json.loads(args["model_config"])
        try:
            check_features(config, args["model_instance_kind"])
            trt = tensorrt(remedy=INSTALL)
            cuda = Cuda()
            cuda("cudaSetDevice", int(args["model_instance_device_id"]))
            for warning in without_effect(config):
                pb_utils.Logger.log_warn(f"{args['model_instance_name']}: {warning}")
            self.messages = Messages(trt, _tell)
            self.engine, self.runtime = _load(trt, cuda, config, args, self.messages)
            self._prepare(trt, cuda, config, args["model_instance_name"])
        except (ConfigError, PlanError) as error:
            raise pb_utils.TritonModelException(str(error)) from error

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request; the requests of one call are one run of the plan, where one shape holds them."""
        feeds = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        runs, refused = self.planner.plan([{name: feed[name].shape for name in self.inputs} for feed in feeds])
        responses = [_error(refused[place], "INVALID_ARG") if place in refused else None for place in range(len(feeds))]
        for number, run in enumerate(runs):
            # The stub copies an answer out of pinned memory when `execute` has returned, when a next run has used it.
            kept = number == len(runs) - 1
            for place, response in self._run(run, requests, feeds, kept=kept):
                responses[place] = response
        return responses

    def finalize(self) -> None:
        """Frees the memory of the GPU, and the pinned memory."""
        try:
            self.execution.close()
        except PlanError as error:
            # A GPU that reports an error to everything gives its memory back when the process ends.
            pb_utils.Logger.log_warn(str(error))
        # In this order: an engine must not outlive its runtime.
        self.execution = self.engine = self.runtime = None

    def _prepare(self, trt: Any, cuda: Any, config: dict[str, Any], name: str) -> None:
        tensors = _tensors(trt, self.engine)
        self.inputs = [tensor.name for tensor in tensors if tensor.is_input]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        numbers = profile_numbers(config, name, count=self.engine.num_optimization_profiles)
        profiles = [_profile(self.engine, self.inputs, number) for number in numbers]
        check_tensors(config, tensors, profiles)
        wanted, warnings = graphs(config, profiles)
        optimization = config.get("optimization", {})
        self.execution = Execution(
            self.engine,
            cuda=cuda,
            messages=self.messages,
            tensors=tensors,
            served=self.outputs,
            profiles=profiles,
            priority=optimization.get("priority", ""),
            busy_wait=bool(optimization.get("cuda", {}).get("busy_wait_events")),
        )
        captured = []
        for graph in wanted:
            try:
                self.execution.capture(graph)
            except PlanError as error:
                warnings.append(f"CUDA graph of {dict(graph.shapes)} is left out: {error}")
            else:
                captured.append(graph)
        for warning in warnings:
            pb_utils.Logger.log_warn(f"{name}: {warning}")
        self.planner = Planner(profiles, captured, config["max_batch_size"] > 0)
        pb_utils.Logger.log_info(
            f"{name}: TensorRT {trt.__version__}, optimization profiles {numbers}, {len(captured)} CUDA graphs, "
            f"{self.execution.bytes_pinned} bytes of pinned memory"
        )

    def _run(self, run: Run, requests: list[Any], feeds: list[dict[str, Any]], *, kept: bool) -> list[tuple[int, Any]]:
        wanted = {place: requests[place].requested_output_names() for place in run.requests}
        names = [name for name in self.outputs if any(name in own for own in wanted.values())]
        try:
            answers = self.execution.run(run, [feeds[place] for place in run.requests], names)
        except PlanError as error:
            return [(place, _error(str(error), "INTERNAL")) for place in run.requests]
        if not kept:
            answers = {name: np.copy(answer) for name, answer in answers.items()}
        return [
            (
                place,
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor(name, answers[name][rows]) for name in names if name in wanted[place]]
                ),
            )
            for place, rows in zip(run.requests, run.rows, strict=True)
        ]


def _load(trt: Any, cuda: Any, config: dict[str, Any], args: dict[str, str], messages: Any) -> tuple[Any, Any]:
    number = int(args["model_instance_device_id"])
    attributes = cuda.cudaDeviceAttr
    major = cuda("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, number)
    minor = cuda("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, number)
    path = plan_path(config, Path(args["model_repository"]) / args["model_version"], f"{major}.{minor}")
    allowed = host_code_allowed(config)
    trt.init_libnvinfer_plugins(messages.logger, "")
    try:
        return load(trt, path.read_bytes(), stamp(path) | {"version_compatible": allowed}, messages)
    except PlanError as error:
        raise PlanError(f"{str(path)!r}: {error}") from error


def _tensors(trt: Any, engine: Any) -> list[Tensor]:
    found = []
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        if engine.is_shape_inference_io(name):
            raise ConfigError(f"tensor {name!r} of the plan holds a shape; the embedded server's backend takes none")
        found.append(
            Tensor(
                name=name,
                is_input=engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                dtype=numpy_type(engine.get_tensor_dtype(name)).name,
                shape=tuple(engine.get_tensor_shape(name)),
            )
        )
    return found


def _profile(engine: Any, inputs: list[str], number: int) -> Profile:
    bounds = {name: [tuple(shape) for shape in engine.get_tensor_profile_shape(name, number)] for name in inputs}
    return Profile(number, *({name: shapes[place] for name, shapes in bounds.items()} for place in range(3)))


def _tell(severity: str, line: str) -> None:
    log = pb_utils.Logger.log_warn if severity == "warning" else pb_utils.Logger.log_error
    log(f"TensorRT: {line}")


def _error(text: str, code: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, getattr(pb_utils.TritonError, code)))
