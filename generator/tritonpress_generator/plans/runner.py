"""Runs TensorRT plans, and times them; copied beside the builder (`builder.py`), and as self-contained as that.

What it shares with the embedded server's backend is written there (`backends/tensorrt/cuda_calls.py`), and copied too.
"""

# ruff: noqa: UP006, UP035, UP045, B905 (Python 3.8 in older containers)
from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

try:
    from . import cuda_calls  # type: ignore[attr-defined]  # Copied, it lies beside this file.
except ImportError:
    from tritonpress_server.backends.tensorrt import cuda_calls

TIMED_S = 2.0
Cuda = cuda_calls.Cuda
Messages = cuda_calls.Messages
PlanError = cuda_calls.PlanError
load = cuda_calls.load
numpy_type = cuda_calls.numpy_type


def tensorrt() -> Any:
    """Returns the module `tensorrt`.

    Raises:
        PlanError: It is not installed, or its libraries cannot be loaded.
    """
    return cuda_calls.tensorrt(remedy="run build_plan.sh, which takes a container")


class Runner:
    """Runs a plan on arrays; one context, the first profile that holds the shapes."""

    def __init__(self, trt: Any, plan: bytes, stamp: Optional[Dict[str, Any]] = None) -> None:
        self._trt, self._cuda = trt, Cuda()
        self.engine, self._runtime = load(trt, plan, stamp)
        self.context = self.engine.create_execution_context()
        self._stream = self._cuda("cudaStreamCreate")
        # TensorRT's bindings take a stream as the number that it is.
        self._handle = int(self._stream)
        names = [self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)]
        inputs = trt.TensorIOMode.INPUT
        self.inputs = [name for name in names if self.engine.get_tensor_mode(name) == inputs]
        self.outputs = [name for name in names if self.engine.get_tensor_mode(name) != inputs]
        self._profile = -1
        self._buffers: Dict[str, Tuple[int, int]] = {}
        self._graph: Any = None

    def choose_profile(self, shape: Sequence[int]) -> None:
        """Makes the profile that holds inputs of `shape` the context's.

        Raises:
            PlanError: None does.
        """
        for number in range(self.engine.num_optimization_profiles):
            least, _, most = self.engine.get_tensor_profile_shape(self.inputs[0], number)
            if all(low <= size <= high for low, size, high in zip(least, shape, most)):
                if number != self._profile:
                    self.context.set_optimization_profile_async(number, self._handle)
                    self._profile = number
                return
        raise PlanError(f"shape {list(shape)}: no profile of the plan holds it; widen optimization_profiles")

    def __call__(self, feed: Dict[str, Any]) -> Dict[str, Any]:
        """Returns the outputs for one feed of arrays, by name."""
        import numpy as np

        cuda = self._cuda
        self.choose_profile(feed[self.inputs[0]].shape)
        arrays = {}
        for name in self.inputs:
            arrays[name] = np.ascontiguousarray(feed[name], numpy_type(self.engine.get_tensor_dtype(name)))
            self.context.set_input_shape(name, arrays[name].shape)
            kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
            cuda(
                "cudaMemcpyAsync",
                self._device(name, arrays[name].nbytes),
                arrays[name].ctypes.data,
                arrays[name].nbytes,
                kind,
                self._stream,
            )
        answers = {}
        for name in self.outputs:
            shape = tuple(self.context.get_tensor_shape(name))
            answers[name] = np.empty(shape, numpy_type(self.engine.get_tensor_dtype(name)))
            self._device(name, answers[name].nbytes)
        for name in (*self.inputs, *self.outputs):
            self.context.set_tensor_address(name, self._buffers[name][0])
        self._graph = None
        self._enqueue()
        for name, answer in answers.items():
            kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            cuda("cudaMemcpyAsync", answer.ctypes.data, self._buffers[name][0], answer.nbytes, kind, self._stream)
        cuda("cudaStreamSynchronize", self._stream)
        return answers

    def again(self, count: int) -> float:
        """Returns the seconds of `count` more executions of the last feed, whose tensors stay on the GPU."""
        self._cuda("cudaStreamSynchronize", self._stream)
        start = time.perf_counter()
        for _ in range(count):
            if self._graph is None:
                self._enqueue()
            else:
                self._cuda("cudaGraphLaunch", self._graph, self._stream)
        self._cuda("cudaStreamSynchronize", self._stream)
        return time.perf_counter() - start

    def capture(self) -> None:
        """Makes of the last feed's execution a CUDA graph, which `again` then replays, until the next feed."""
        cuda = self._cuda
        cuda("cudaStreamBeginCapture", self._stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        self._enqueue()
        graph = cuda("cudaStreamEndCapture", self._stream)
        self._graph = cuda("cudaGraphInstantiate", graph, 0)

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self._handle):
            raise PlanError("the plan could not be run; see what TensorRT says above")

    def _device(self, name: str, size: int) -> int:
        """Returns the address of at least `size` bytes on the GPU for the tensor `name`."""
        address, room = self._buffers.get(name, (0, 0))
        if room < size:
            if room:
                self._cuda("cudaFree", address)
            address = int(self._cuda("cudaMalloc", size))
            self._buffers[name] = (address, size)
        return address


def fitting(
    run: Callable[[Any], Dict[str, Any]], profiles: Sequence[Dict[str, Any]], of_tokens: Sequence[str]
) -> Callable[[Any], Dict[str, Any]]:
    """Returns `run` for padded batches of every length: filled up to the shortest profile that holds them.

    Args:
        run: Of a plan.
        profiles: What it was built for (`builder.py`).
        of_tokens: The outputs that have a value a token, of which those of what was filled up are cut off.

    What is returned raises PlanError for what no profile holds.
    """
    import numpy as np

    def infer(feed: Any) -> Dict[str, Any]:
        batch, length = next(iter(feed.values())).shape
        suited = [p["length"] for p in profiles if p["batch"][0] <= batch <= p["batch"][2]]
        holding = [bounds for bounds in suited if length <= bounds[2]]
        if not holding:
            raise PlanError(f"shape {[batch, length]}: no profile of the plan holds it; widen optimization_profiles")
        more = min(max(low - length, 0) for low, _, _ in holding)
        answers = run({name: np.pad(tensor, ((0, 0), (0, more))) for name, tensor in feed.items()} if more else feed)
        return {name: answer[:, :length] if name in of_tokens else answer for name, answer in answers.items()}

    return infer


def device(cuda: Any) -> Dict[str, Any]:
    """Returns what a plan's stamp says of the GPU and CUDA."""
    number = cuda("cudaGetDevice")
    properties = cuda("cudaGetDeviceProperties", number)
    name = properties.name
    return {
        "gpu": name.decode() if isinstance(name, bytes) else str(name),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": cuda("cudaRuntimeGetVersion"),
        "driver": cuda("cudaDriverGetVersion"),
    }


def timed(runners: Dict[str, Any], inputs: Sequence[str], shapes: Sequence[Sequence[int]]) -> Dict[str, float]:
    """Returns the ms that each runner takes for one execution of each of `shapes`; medians, measured in turn."""
    import numpy as np

    totals = dict.fromkeys(runners, 0.0)
    for shape in shapes:
        feed = {name: np.ones(tuple(shape), np.int32) for name in inputs}
        times: Dict[str, List[float]] = {name: [] for name in runners}
        for run in runners.values():
            for _ in range(5):
                run(feed)
        end = time.perf_counter() + TIMED_S
        while time.perf_counter() < end:
            for name, run in runners.items():
                start = time.perf_counter()
                run(feed)
                times[name].append(time.perf_counter() - start)
        for name, of in times.items():
            totals[name] += float(np.median(of)) * 1e3
    return totals
