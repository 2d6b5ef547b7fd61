"""A plan of the doubles of TensorRT and CUDA, whose kernels are a numpy function; what a server's instance is given.

As far as TensorRT's documentation says so, it refuses what TensorRT does: shapes outside the active profile, an
execution without shapes or addresses, and a capture before the first execution with new shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from recorded_cuda import RecordedCuda
from recorded_tensorrt import Attribute, Calls, Method, Recorded

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Bounds = tuple[Shape, Shape, Shape]
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "BOOL": np.bool_}


def plus_one(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": inputs["x"] + 1}


@dataclass
class ComputedPlan:
    """y = x + 1 over (batch, 4) FP32, unless told otherwise."""

    profiles: Sequence[Mapping[str, Bounds]] = field(default_factory=lambda: [{"x": ((1, 4), (8, 4), (8, 4))}])
    inputs: Mapping[str, tuple[str, Shape]] = field(default_factory=lambda: {"x": ("FLOAT", (-1, 4))})
    outputs: Mapping[str, tuple[str, Shape]] = field(default_factory=lambda: {"y": ("FLOAT", (-1, 4))})
    compute: Callable[[Mapping[str, Array]], Mapping[str, Array]] = plus_one
    output_shape: Callable[[Mapping[str, Shape], str], Shape] = lambda shapes, _: next(iter(shapes.values()))

    def module(self, version: str, cuda: RecordedCuda, calls: Calls, **changes: Any) -> Recorded:
        """TensorRT of a release, whose runtime gives this plan for any file."""
        answers: dict[str, Any] = {}
        trt = Recorded(version, answers, calls)
        tensors = {**self.inputs, **self.outputs}
        names = list(tensors)
        made: list[dict[str, Any]] = []

        def begin(state: dict[str, Any]) -> dict[str, Any]:
            if not state:
                # The first context of an engine has profile 0 by itself.
                state.update(profile=-1 if made else 0, shapes={}, addresses={}, new=True)
                made.append(state)
            return state

        def set_profile(state: dict[str, Any], number: int, stream: int) -> bool:
            begin(state).update(profile=number, shapes={}, new=True)
            return 0 <= number < len(self.profiles)

        def set_shape(state: dict[str, Any], name: str, shape: Shape) -> bool:
            least, _, most = self.profiles[begin(state)["profile"]][name]
            state["shapes"][name] = tuple(shape)
            state["new"] = True
            return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

        def set_address(state: dict[str, Any], name: str, address: int) -> bool:
            begin(state)["addresses"][name] = address
            return name in tensors

        def execute(state: dict[str, Any], stream: int) -> bool:
            ready = set(begin(state)["shapes"]) == set(self.inputs) and set(state["addresses"]) == set(tensors)
            if not ready or (cuda.capturing and state["new"]):
                return False
            state["new"] = False
            shapes, addresses = dict(state["shapes"]), dict(state["addresses"])
            return cuda.issue(lambda: self._run(cuda, shapes, addresses))

        def most_bytes(state: dict[str, Any], name: str) -> int:
            bounds = self.profiles[begin(state)["profile"]]
            shape = self.output_shape({key: most for key, (_, _, most) in bounds.items()}, name)
            return math.prod(shape) * np.dtype(NUMPY[tensors[name][0]]).itemsize

        answers |= {
            "ICudaEngine.num_io_tensors": len(names),
            "ICudaEngine.num_optimization_profiles": len(self.profiles),
            "ICudaEngine.get_tensor_name": lambda number: names[number],
            "ICudaEngine.get_tensor_mode": lambda name: (
                trt.TensorIOMode.INPUT if name in self.inputs else trt.TensorIOMode.OUTPUT
            ),
            "ICudaEngine.get_tensor_dtype": lambda name: getattr(trt.DataType, tensors[name][0]),
            "ICudaEngine.get_tensor_shape": lambda name: tensors[name][1],
            "ICudaEngine.get_tensor_profile_shape": lambda name, number: list(self.profiles[number][name]),
            "ICudaEngine.is_shape_inference_io": lambda name: False,
            "IExecutionContext.active_optimization_profile": Attribute(lambda state: begin(state)["profile"]),
            "IExecutionContext.set_optimization_profile_async": Method(set_profile),
            "IExecutionContext.set_input_shape": Method(set_shape),
            "IExecutionContext.get_tensor_shape": Method(lambda state, name: self.output_shape(state["shapes"], name)),
            "IExecutionContext.get_max_output_size": Method(most_bytes),
            "IExecutionContext.set_tensor_address": Method(set_address),
            "IExecutionContext.execute_async_v3": Method(execute),
            **changes,
        }
        return trt

    def _run(self, cuda: RecordedCuda, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> bool:
        def memory(name: str, kind: str, shape: Shape) -> Array:
            dtype = np.dtype(NUMPY[kind])
            found = cuda.bytes_at(addresses[name], math.prod(shape) * dtype.itemsize, "device")
            return np.ctypeslib.as_array(found).view(dtype).reshape(shape)

        answers = self.compute({name: memory(name, kind, shapes[name]) for name, (kind, _) in self.inputs.items()})
        for name, (kind, _) in self.outputs.items():
            memory(name, kind, answers[name].shape)[...] = answers[name]
        return True
