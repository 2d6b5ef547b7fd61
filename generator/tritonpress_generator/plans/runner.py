"""Runs TensorRT plans, times them, and says what they consist of.

Copied beside the builder (`builder.py`), and as self-contained as that. What it shares with the embedded server's
backend is written there (`backends/tensorrt/cuda_calls.py`), and copied too.
"""

# ruff: noqa: UP006, UP035, UP045, B905 (Python 3.8 in older containers)
from __future__ import annotations

import json
import re
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

try:
    from . import cuda_calls  # type: ignore[attr-defined]  # Copied, it lies beside this file.
except ImportError:
    from tritonpress_server.backends.tensorrt import cuda_calls

TIMED_S = 2.0
REBUILD = "build the plan again on this GPU"
Cuda = cuda_calls.Cuda
Messages = cuda_calls.Messages
PlanError = cuda_calls.PlanError
load = cuda_calls.load
numpy_type = cuda_calls.numpy_type
TYPES = {
    "FLOAT": "FP32", "HALF": "FP16", "BFLOAT16": "BF16", "BOOL": "BOOL",
    **{name: name for name in ("FP32", "FP16", "BF16", "FP8", "FP4", "INT64", "INT32", "INT8", "INT4", "UINT8")},
}  # fmt: skip
"""The builder flags' names of the types that the inspector has words for, whose case is not the same everywhere."""


def tensorrt() -> Any:
    """Returns the module `tensorrt`.

    Raises:
        PlanError: It is not installed, or its libraries cannot be loaded.
    """
    return cuda_calls.tensorrt(remedy="run build_plan.sh, which takes a container")


class Runner:
    """Runs a plan on arrays; one context, the first profile that holds the shapes."""

    def __init__(self, trt: Any, plan: bytes, stamp: Optional[Dict[str, Any]] = None) -> None:
        """Loads `plan`, of which `stamp` says what the builder wrote beside it; `close()` frees it.

        Raises:
            PlanError: The plan is corrupt or of another TensorRT or GPU, or the GPU's memory does not suffice.
        """
        self._trt, self._cuda, self._messages = trt, Cuda(), Messages(trt)
        self.engine, self._runtime = load(trt, plan, stamp, self._messages)
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise PlanError(f"TensorRT makes no execution context ({self._said()}); {cuda_calls.REMEDIES[2]}")
        self._stream = self._cuda("cudaStreamCreate")
        # TensorRT's bindings take a stream as the number that it is.
        self._handle = int(self._stream)
        names = [self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)]
        inputs = trt.TensorIOMode.INPUT
        self.inputs = [name for name in names if self.engine.get_tensor_mode(name) == inputs]
        self.outputs = [name for name in names if self.engine.get_tensor_mode(name) != inputs]
        # The first context has profile 0 by itself, and may not be given it again in every release.
        self._profile = self.context.active_optimization_profile
        self._buffers: Dict[str, Tuple[int, int]] = {}
        self._graph: Any = None

    def choose_profile(self, shape: Sequence[int]) -> None:
        """Makes the profile that holds inputs of `shape` the context's.

        Raises:
            PlanError: None does, or TensorRT refuses it.
        """
        for number in range(self.engine.num_optimization_profiles):
            least, _, most = self.engine.get_tensor_profile_shape(self.inputs[0], number)
            if all(low <= size <= high for low, size, high in zip(least, shape, most)):
                if number != self._profile:
                    if not self.context.set_optimization_profile_async(number, self._handle):
                        raise PlanError(f"TensorRT refuses optimization profile {number} ({self._said()}); {REBUILD}")
                    self._profile = number
                return
        raise PlanError(f"shape {list(shape)}: no profile of the plan holds it; widen optimization_profiles")

    def __call__(self, feed: Dict[str, Any]) -> Dict[str, Any]:
        """Returns the outputs for one feed of arrays, by name.

        Raises:
            PlanError: No profile holds their shapes, or TensorRT or CUDA reports an error.
        """
        import numpy as np

        cuda = self._cuda
        self._forget_graph()
        self.choose_profile(feed[self.inputs[0]].shape)
        arrays = {}
        for name in self.inputs:
            arrays[name] = np.ascontiguousarray(feed[name], numpy_type(self.engine.get_tensor_dtype(name)))
            if not self.context.set_input_shape(name, arrays[name].shape):
                raise PlanError(
                    f"input {name!r} of shape {list(arrays[name].shape)} is refused ({self._said()}); inputs must be "
                    "of one shape, which a profile of the plan holds"
                )
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
            if not self.context.set_tensor_address(name, self._buffers[name][0]):
                raise PlanError(f"tensor {name!r} has no place in the plan's context ({self._said()}); {REBUILD}")
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
        """Makes of the last feed's execution a CUDA graph, which `again` then replays, until the next feed.

        Raises:
            PlanError: It cannot be captured; the plan runs without a graph as before.
        """
        self._forget_graph()
        self._graph = cuda_calls.captured(self._cuda, self._stream, self._enqueue)

    def close(self) -> None:
        """Frees the GPU's memory that the plan takes; it may not be run any more."""
        self._cuda("cudaStreamSynchronize", self._stream)
        self._forget_graph()
        # A context goes before the memory that it holds the addresses of, and an engine after its contexts.
        self.context = self.engine = self._runtime = None
        for address, _ in self._buffers.values():
            self._cuda("cudaFree", address)
        self._buffers.clear()
        self._cuda("cudaStreamDestroy", self._stream)

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self._handle):
            raise PlanError(f"TensorRT cannot run the plan ({self._said()}); {REBUILD}")

    def _forget_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            self._cuda("cudaGraphExecDestroy", graph)

    def _said(self) -> str:
        return str(self._messages.last()[:300])

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


def layers(trt: Any, engine: Any) -> Dict[str, Any]:
    """Returns what the engine consists of: every layer, and how many there are by the type of what they give.

    Raises:
        PlanError: TensorRT's inspector says nothing, or says it in a form that is not known here.
    """
    try:
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        entries = json.loads(text).get("Layers", [])
        counts: Dict[str, int] = {}
        for entry in entries:
            outputs = entry.get("Outputs", []) if isinstance(entry, dict) else []
            kinds = sorted({_element_type(output) for output in outputs}) or ["?"]
            key = "+".join(kinds)
            counts[key] = counts.get(key, 0) + 1
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as exc:
        reason = " ".join(str(exc).split())[:200]
        raise PlanError(f"TensorRT's report of the layers cannot be read ({type(exc).__name__}: {reason})") from exc
    return {"layers": entries, "by_type": counts}


def _element_type(output: Dict[str, Any]) -> str:
    """Returns the type of a layer's output as the builder's flags name it, else what is said, or "?".

    Releases say it in words of their own: `Half`, `Row major linear FP16 format`, `Channel major Int8 format where
    channel % 4 == 0`.
    """
    said = str(output.get("Format/Datatype", output.get("DataType", "?")))
    words = [word.upper() for word in re.findall(r"\w+", said)]
    return next((TYPES[word] for word in words if word in TYPES), said)
