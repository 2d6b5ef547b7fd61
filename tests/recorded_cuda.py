"""A recorded-call double of cuda-python's module of the CUDA runtime, with memory that is truly copied.

It has the names of one release (`cuda_names.json`, read from the wheels by `tests/tensorrt_names.py`) and no others.
Pinned and device memory are blocks of the test's own memory, full of what nobody wrote there, and a copy outside them
or in the wrong direction fails; a captured graph holds what was issued, and does it when it is launched. So it shows
which calls are made and that the data take the right way; speed and what a GPU refuses are seen on a GPU alone.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recorded_tensorrt import Calls, Enumeration

NAMES: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parent / "cuda_names.json").read_text(encoding="utf-8")
)
VERSIONS = list(NAMES)
# Of the headers of CUDA.
CONSTANTS = {
    "cudaStreamNonBlocking": 1,
    "cudaEventBlockingSync": 1,
    "cudaEventDisableTiming": 2,
    "cudaHostAllocDefault": 0,
}
INVALID_VALUE = 1
FAILED = object()
PRIORITIES = (0, -5)
CAPABILITY = {"cudaDevAttrComputeCapabilityMajor": 9, "cudaDevAttrComputeCapabilityMinor": 0}
UNWRITTEN = 0xA5


class RecordedCuda:
    """The module of one release, with one GPU."""

    def __init__(
        self,
        version: str,
        calls: Calls | None = None,
        fails: dict[str, Any] | None = None,
        *,
        pageable: bool = False,
    ) -> None:
        """Takes any call that the release has.

        Args:
            version: The release.
            calls: Where calls are recorded, by their names; by default a list of its own.
            fails: The error that a call reports, by its name, or a callable that gives it; 0 is none.
            pageable: Whether the host's memory in a copy may be any, and not pinned alone.
        """
        self.calls: Calls = [] if calls is None else calls
        self.fails = fails or {}
        self.live: dict[int, str] = {}
        """What was made and not freed yet, by handle."""
        self.last_error = 0
        """What `cudaGetLastError` would tell of."""
        self._pageable = pageable
        self._names = NAMES[version]
        self._blocks: dict[int, Any] = {}
        self._graphs: dict[int, list[Callable[[], bool]]] = {}
        self._capturing: list[Callable[[], bool]] | None = None
        self._handles = iter(range(1000, 100_000))
        frees = ("Free", "FreeHost", "StreamDestroy", "EventDestroy", "GraphDestroy", "GraphExecDestroy")
        self._answers: dict[str, Callable[..., Any]] = {
            "cudaHostAlloc": lambda size, flags: self._block(size, "pinned"),
            "cudaMalloc": lambda size: self._block(size, "device"),
            "cudaMemcpyAsync": self._copy,
            "cudaStreamBeginCapture": self._begin_capture,
            "cudaStreamEndCapture": self._end_capture,
            "cudaGraphInstantiateWithFlags": self._instantiate,
            "cudaGraphLaunch": lambda graph, stream: None if all(do() for do in self._graphs[graph]) else FAILED,
            "cudaStreamCreate": lambda: self._handle("stream"),
            "cudaStreamCreateWithPriority": lambda flags, priority: self._handle("stream"),
            "cudaGetDevice": lambda: 0,
            "cudaGetDeviceCount": lambda: 1,
            "cudaGetDeviceProperties": lambda number: SimpleNamespace(name=b"NVIDIA H200", major=9, minor=0),
            "cudaRuntimeGetVersion": lambda: 12060,
            "cudaDriverGetVersion": lambda: 13000,
            "cudaEventCreateWithFlags": lambda flags: self._handle("event"),
            "cudaDeviceGetAttribute": self._attribute,
            **{f"cuda{name}": self._free for name in frees},
        }

    def __getattr__(self, name: str) -> Any:
        if name not in self._names[""]:
            raise AttributeError(f"cuda-python has no {name}")
        if name in self._names:
            return Enumeration(name, self._names[name])
        if name in CONSTANTS:
            return CONSTANTS[name]

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            if name == "cudaGetLastError":
                error, self.last_error = self.last_error, 0
                return (error,)
            error = self.fails.get(name, 0)
            if error := error() if callable(error) else error:
                self.last_error = error
                if name == "cudaStreamEndCapture":
                    self._capturing = None
                return (error, None)
            if name == "cudaDeviceGetStreamPriorityRange":
                return (0, *PRIORITIES)
            answer = self._answers.get(name, lambda *_: None)(*arguments)
            return (INVALID_VALUE, None) if answer is FAILED else (0,) if answer is None else (0, answer)

        return call

    @property
    def capturing(self) -> bool:
        """Whether a stream captures."""
        return self._capturing is not None

    def issue(self, work: Callable[[], bool]) -> bool:
        """Does `work`, or captures it, and says whether it went well."""
        if self._capturing is not None:
            self._capturing.append(work)
            return True
        return work()

    def bytes_at(self, address: int, size: int, kind: str) -> Any:
        """The memory of `size` bytes from `address` on: of a block of `kind`, or where it may be any, the host's."""
        for start, block in self._blocks.items():
            if start <= address and address + size <= start + len(block):
                return (ctypes.c_uint8 * size).from_address(address) if self.live[start] == kind else None
        return (ctypes.c_uint8 * size).from_address(address) if self._pageable and kind == "pinned" else None

    def _block(self, size: int, kind: str) -> int:
        block = (ctypes.c_uint8 * size)()
        ctypes.memset(block, UNWRITTEN, size)
        address = ctypes.addressof(block)
        self._blocks[address] = block
        self.live[address] = kind
        return address

    def _handle(self, kind: str) -> int:
        handle = next(self._handles)
        self.live[handle] = kind
        return handle

    def _free(self, handle: int) -> None:
        del self.live[handle]
        self._blocks.pop(handle, None)

    def _copy(self, target: int, source: int, size: int, kind: int, stream: int) -> object:
        up = kind == Enumeration("", self._names["cudaMemcpyKind"]).cudaMemcpyHostToDevice

        def copy() -> bool:
            to = self.bytes_at(target, size, "device" if up else "pinned")
            of = self.bytes_at(source, size, "pinned" if up else "device")
            if to is None or of is None:
                return False
            ctypes.memmove(to, of, size)
            return True

        return None if self.issue(copy) else FAILED

    def _begin_capture(self, stream: int, mode: int) -> None:
        self._capturing = []

    def _end_capture(self, stream: int) -> int:
        handle = self._handle("graph")
        self._graphs[handle] = self._capturing or []
        self._capturing = None
        return handle

    def _instantiate(self, graph: int, flags: int) -> int:
        handle = self._handle("executable graph")
        self._graphs[handle] = self._graphs[graph]
        return handle

    def _attribute(self, attribute: int, device: int) -> int:
        members = Enumeration("", self._names["cudaDeviceAttr"])
        return next(value for name, value in CAPABILITY.items() if getattr(members, name) == attribute)
