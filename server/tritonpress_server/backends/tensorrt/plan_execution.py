"""Running a plan: pinned and device buffers, a context for each optimization profile, CUDA graphs, one stream.

A tensor has one buffer of pinned memory and one on the GPU, as large as its largest shape in any profile, so that the
addresses never change: a batch is written into the former where it will be copied from, and a CUDA graph can hold the
copies as well as the kernels.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda_calls import REMEDIES, Cuda, Messages, PlanError, captured  # type: ignore[import-not-found]
from plan_config import Tensor  # type: ignore[import-not-found]
from plan_shapes import Graph, Profile, Run, Shape, Shapes, bytes_needed  # type: ignore[import-not-found]

Array = npt.NDArray[Any]
# Each tensor has some room, so that a shape without elements has an address too.
LEAST_BYTES = 1


class Execution:
    """What an instance runs its batches with; `close()` frees it."""

    def __init__(
        self,
        engine: Any,
        *,
        cuda: Cuda,
        messages: Messages,
        tensors: Sequence[Tensor],
        served: Sequence[str],
        profiles: Sequence[Profile],
        priority: str = "PRIORITY_DEFAULT",
        busy_wait: bool = False,
    ) -> None:
        """Allocates the buffers and creates the contexts.

        Args:
            engine: Of TensorRT.
            cuda: With the instance's GPU as its device.
            messages: What TensorRT says.
            tensors: The plan's inputs and outputs.
            served: The outputs that may be asked for.
            profiles: The instance's.
            priority: Of the stream among the GPU's, as `optimization.priority` has it.
            busy_wait: Whether the CPU waits for the GPU awake, which is sooner by what waking takes.

        Raises:
            PlanError: There is no memory left, or an output's size depends on more than shapes.
        """
        self._cuda, self._messages = cuda, messages
        self._inputs = [tensor.name for tensor in tensors if tensor.is_input]
        self._outputs = [tensor.name for tensor in tensors if not tensor.is_input]
        self._served = list(served)
        self._dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in tensors}
        self._pinned: dict[str, int] = {}
        self._device: dict[str, int] = {}
        self._host: dict[str, Array] = {}
        self._room_bytes: dict[str, int] = {}
        self._shaped: dict[int, tuple[Shapes, dict[str, Shape]]] = {}
        self._graphs: list[tuple[Any, dict[str, Shape]]] = []
        self._stream = cuda("cudaStreamCreateWithPriority", int(cuda.cudaStreamNonBlocking), self._priority(priority))
        flags = int(cuda.cudaEventDisableTiming) | (0 if busy_wait else int(cuda.cudaEventBlockingSync))
        self._done = cuda("cudaEventCreateWithFlags", flags)
        self._contexts = {profile.number: self._context(engine, profile.number) for profile in profiles}
        room = bytes_needed(profiles, {name: self._dtypes[name].itemsize for name in self._inputs})
        room |= {name: self._most_bytes(name, profiles) for name in self._outputs}
        self._room_bytes = {name: max(size, LEAST_BYTES) for name, size in room.items()}
        self._allocate()
        for context in self._contexts.values():
            for name, address in self._device.items():
                if not context.set_tensor_address(name, address):
                    raise PlanError(f"tensor {name!r} has no place in the plan's context ({messages.last()[:300]})")

    @property
    def bytes_pinned(self) -> int:
        """How much pinned memory the instance has."""
        return sum(array.nbytes for array in self._host.values())

    def capture(self, graph: Graph) -> None:
        """Captures a CUDA graph, of the copies too; a run names it by its place among those that were captured.

        Raises:
            PlanError: The plan cannot be captured, or the GPU's memory does not suffice.
        """
        made = self._shape(graph.profile, graph.shapes)
        outputs = {name: made[name] for name in self._served}
        # A first execution does what TensorRT puts off after a change of shapes, which a capture must not hold.
        self._issue(graph.profile, graph.shapes, outputs)
        self._wait()
        executable = captured(self._cuda, self._stream, lambda: self._issue(graph.profile, graph.shapes, outputs))
        try:
            # Else the first batch would wait for it.
            self._cuda("cudaGraphUpload", executable, self._stream)
            self._wait()
        except PlanError:
            self._cuda("cudaGraphExecDestroy", executable)
            self._cuda.forget_error()
            raise
        self._graphs.append((executable, outputs))

    def run(self, run: Run, feeds: Sequence[Mapping[str, Array]], outputs: Sequence[str]) -> dict[str, Array]:
        """Returns the outputs by name, which lie in pinned memory and are overwritten by the next run.

        Args:
            run: Of a planner that has this instance's profiles, and the graphs that were captured.
            feeds: The inputs of each of the run's requests.
            outputs: The names of those that are wanted.

        Raises:
            PlanError: TensorRT or CUDA reports an error.
        """
        for name in self._inputs:
            self._fill(name, run, feeds)
        if run.graph is not None:
            executable, shapes = self._graphs[run.graph]
            self._cuda("cudaGraphLaunch", executable, self._stream)
        else:
            made = self._shape(run.profile, run.shapes)
            shapes = {name: made[name] for name in outputs}
            self._issue(run.profile, run.shapes, shapes)
        self._wait()
        return {name: self._view(name, shapes[name]) for name in outputs}

    def close(self) -> None:
        """Frees everything; nothing of the instance may be used any more, its outputs included."""
        self._cuda("cudaStreamSynchronize", self._stream)
        for executable, _ in self._graphs:
            self._cuda("cudaGraphExecDestroy", executable)
        self._graphs.clear()
        # Contexts go before the memory that they hold the addresses of.
        self._contexts.clear()
        self._host.clear()
        for address in self._device.values():
            self._cuda("cudaFree", address)
        for address in self._pinned.values():
            self._cuda("cudaFreeHost", address)
        self._cuda("cudaEventDestroy", self._done)
        self._cuda("cudaStreamDestroy", self._stream)

    def _fill(self, name: str, run: Run, feeds: Sequence[Mapping[str, Array]]) -> None:
        pinned = self._view(name, run.shapes[name])
        for rows, feed in zip(run.rows, feeds, strict=True):
            pinned[rows] = feed[name]
        last = run.rows[-1]
        if isinstance(last, slice) and last.stop < len(pinned):
            # A graph's further rows repeat the last, which is input that the model is made for, as zeros need not be.
            pinned[last.stop :] = pinned[last.stop - 1]

    def _shape(self, profile: int, shapes: Shapes) -> dict[str, Shape]:
        """Gives the profile's context the inputs' shapes, and returns the outputs'."""
        if profile in self._shaped and self._shaped[profile][0] == shapes:
            return self._shaped[profile][1]
        self._shaped.pop(profile, None)
        context = self._contexts[profile]
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise PlanError(f"input {name!r} of shape {list(shape)} is refused ({self._messages.last()[:300]})")
        outputs = {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
        for name, shape in outputs.items():
            self._check_output(name, shape)
        self._shaped[profile] = (dict(shapes), outputs)
        return outputs

    def _check_output(self, name: str, shape: Shape) -> None:
        if min(shape, default=0) < 0:
            raise PlanError(f"output {name!r} must have a shape that follows from the inputs', got {list(shape)}")
        size, room = self._bytes(name, shape), self._room_bytes.get(name)
        if room is not None and size > room:
            raise PlanError(f"output {name!r} of shape {list(shape)} takes {size} bytes, more than TensorRT's {room}")

    def _issue(self, profile: int, shapes: Shapes, outputs: Mapping[str, Shape]) -> None:
        """Puts an execution into the stream, with the copies before and after it."""
        kinds = self._cuda.cudaMemcpyKind
        for name, shape in shapes.items():
            self._copy(self._device[name], self._pinned[name], self._bytes(name, shape), kinds.cudaMemcpyHostToDevice)
        if not self._contexts[profile].execute_async_v3(int(self._stream)):
            raise PlanError(f"TensorRT cannot run the plan ({self._messages.last()[:300]})")
        for name, shape in outputs.items():
            self._copy(self._pinned[name], self._device[name], self._bytes(name, shape), kinds.cudaMemcpyDeviceToHost)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        if size:
            self._cuda("cudaMemcpyAsync", target, source, size, kind, self._stream)

    def _wait(self) -> None:
        self._cuda("cudaEventRecord", self._done, self._stream)
        self._cuda("cudaEventSynchronize", self._done)

    def _context(self, engine: Any, number: int) -> Any:
        context = engine.create_execution_context()
        if context is None:
            raise PlanError(f"TensorRT makes no execution context ({self._messages.last()[:300]}); {REMEDIES[2]}")
        # The first context has profile 0 by itself, and may not be given it again in every release.
        if context.active_optimization_profile != number:
            if not context.set_optimization_profile_async(number, int(self._stream)):
                raise PlanError(f"TensorRT refuses optimization profile {number} ({self._messages.last()[:300]})")
            self._cuda("cudaStreamSynchronize", self._stream)
        return context

    def _most_bytes(self, output: str, profiles: Sequence[Profile]) -> int:
        """Returns the bytes of an output at the largest shapes of every profile."""
        sizes = []
        for profile in profiles:
            context = self._contexts[profile.number]
            for name, shape in profile.most.items():
                if not context.set_input_shape(name, shape):
                    raise PlanError(f"input {name!r} of shape {list(shape)} is refused ({self._messages.last()[:300]})")
            shape = tuple(context.get_tensor_shape(output))
            self._check_output(output, shape)
            # An output need not be the largest where the inputs are.
            sizes.append(max(self._bytes(output, shape), int(context.get_max_output_size(output))))
        return max(sizes)

    def _allocate(self) -> None:
        for name, size in self._room_bytes.items():
            self._device[name] = int(self._cuda("cudaMalloc", size))
        for name in (*self._inputs, *self._served):
            size = self._room_bytes[name]
            self._pinned[name] = int(self._cuda("cudaHostAlloc", size, int(self._cuda.cudaHostAllocDefault)))
            self._host[name] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._pinned[name]))
            # What a capture's first execution reads.
            self._host[name][:] = 0

    def _priority(self, name: str) -> int:
        least, greatest = self._cuda("cudaDeviceGetStreamPriorityRange")
        return {"PRIORITY_MAX": int(greatest), "PRIORITY_MIN": int(least)}.get(name, 0)

    def _view(self, name: str, shape: Shape) -> Array:
        return self._host[name][: self._bytes(name, shape)].view(self._dtypes[name]).reshape(shape)

    def _bytes(self, name: str, shape: Shape) -> int:
        return int(math.prod(shape) * self._dtypes[name].itemsize)
