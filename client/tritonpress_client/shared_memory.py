"""Large inputs through system shared memory, where client and server share a host.

A region is a file in /dev/shm that one server has mapped. It holds the inputs of one request at a time, which the
server reads where they lie. Its name is taken away as soon as the server has it, so that whoever dies leaves no file.

A call that was given up may still be read by the server: its region is not written again, and unregistered once the
server says that nothing uses it. Outputs come back in the answer: those of our models are small, and what a server
writes late would lie in memory that another request has by then.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import mmap
import os
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from tritonpress_client.credentials import on_this_host
from tritonpress_client.errors import (
    AccessDeniedError,
    InvalidInputError,
    TritonpressError,
    error_kind,
    is_unanswered,
)
from tritonpress_client.observers import log_event
from tritonpress_client.options import Options, SharedMemory

Ask = Callable[[str, Any, float], Awaitable[Any]]
"""Asks the server, by gRPC's method, its message and until when; raises grpc.RpcError."""
Sleep = Callable[[float], Awaitable[None]]

# Where POSIX shared memory lies on Linux.
_FOLDER = Path("/dev/shm")
_LEAST_REGION_BYTES = 1 << 18
_ALIGNMENT = 64
_PAUSE_S = 5.0
_SWEEP_S = 1.0
_PATIENCE_S = 0.05
_MOMENT_S = 0.002
# From here on a server counts a region's requests; before, one that is unregistered in use ends it (server #3207).
_LEAST_TRITON = (2, 50)
_FULL = (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT)
_IN_USE = re.compile(r"currently in use", re.IGNORECASE)


def check_targets(targets: Sequence[str], options: Options) -> None:
    """Refuses servers elsewhere, which cannot see this host's memory.

    Raises:
        InvalidInputError: Shared memory is asked for, and a target is not on this host.
    """
    for target in targets:
        if options.shared_memory is not None and not on_this_host(target):
            raise InvalidInputError(
                f"`shared_memory` is for servers of this host (127.0.0.1, localhost, unix:), {target} may be elsewhere;"
                " leave it out",
                target=target,
            )


class Region:
    """Memory that is shared with a server.

    tritonclient's own (over `multiprocessing.shared_memory`) keeps the name, starts a process that watches over it, and
    does not reserve the memory, so that a full /dev/shm ends whoever writes.
    """

    __slots__ = ("generation", "memory", "name")

    def __init__(self, byte_size: int, generation: int) -> None:
        self.name = f"tritonpress-client-{os.getpid()}-{secrets.token_hex(8)}"
        self.generation = generation
        descriptor = os.open(_FOLDER / self.name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            # Memory that is not there would end this process when it writes, and the server when it reads.
            os.posix_fallocate(descriptor, 0, byte_size)
            self.memory = mmap.mmap(descriptor, byte_size)
        except OSError:
            self.unlink()
            raise
        finally:
            os.close(descriptor)

    def unlink(self) -> None:
        """Takes the name away; who has mapped the memory keeps it."""
        (_FOLDER / self.name).unlink(missing_ok=True)


class Regions:
    """The regions of one server.

    Args:
        target: The server's address, for messages.
        settings: How much memory, and for what.
        ask: Asks that server.
        sleep: Waits.
    """

    def __init__(self, target: str, settings: SharedMemory, ask: Ask, sleep: Sleep) -> None:
        self._target = target
        self._settings = settings
        self._ask = ask
        self._sleep = sleep
        self._new_past(generation=0)

    def _new_past(self, *, generation: int) -> None:
        self._lock = threading.Lock()
        self._free: list[Region] = []
        self._retired: list[Region] = []
        self._byte_size = 0
        self._generation = generation
        self._known_generation = -1
        self._paused_until = self._next_sweep = 0.0

    def reset_after_fork(self) -> None:
        """Goes on in a forked process, without the parent's regions."""
        self._new_past(generation=self._generation + 1)

    async def placed(self, request: Any, deadline: float) -> tuple[Any, Region | None]:
        """Returns a `ModelInferRequest` whose large inputs lie in a region, and that region.

        Args:
            request: With its inputs in it; it stays as it is.
            deadline: By `time.monotonic()`, for what the server must be asked before.

        Returns:
            The request itself and None where no input is large, or no memory is left.

        Raises:
            TritonpressError: The server refuses shared memory.
        """
        contents = list(request.raw_input_contents)
        large = [len(content) >= self._settings.least_bytes for content in contents]
        sizes = [_aligned(len(content)) for content in itertools.compress(contents, large)]
        region = await self._lease(sum(sizes), deadline) if sizes else None
        if region is None:
            return request, None
        placed = service_pb2.ModelInferRequest(
            model_name=request.model_name, inputs=request.inputs, outputs=request.outputs
        )
        for key, value in request.parameters.items():
            placed.parameters[key].CopyFrom(value)
        offset = 0
        for tensor, content, is_large in zip(placed.inputs, contents, large, strict=True):
            if not is_large:
                placed.raw_input_contents.append(content)
                continue
            region.memory[offset : offset + len(content)] = content
            tensor.parameters["shared_memory_region"].string_param = region.name
            tensor.parameters["shared_memory_byte_size"].int64_param = len(content)
            tensor.parameters["shared_memory_offset"].int64_param = offset
            offset += _aligned(len(content))
        return placed, region

    def release(self, region: Region, *, answered: bool, unknown: bool) -> None:
        """Takes a region back.

        Args:
            region: The request's.
            answered: Whether the server has done with it; else it may still read.
            unknown: Whether the server has said that it does not know it, as one that was started anew.
        """
        with self._lock:
            if unknown and region.generation == self._generation:
                self._generation += 1
                for other in self._free:
                    self._close(other)
                self._free.clear()
            if region.generation != self._generation:
                self._close(region)
            else:
                (self._free if answered else self._retired).append(region)

    async def close(self, deadline: float) -> None:
        """Unregisters all of them."""
        with self._lock:
            self._retired += self._free
            self._free.clear()
            self._next_sweep = 0.0
        await self._sweep(deadline, patience_s=math.inf)
        with self._lock:
            for region in self._retired:
                self._close(region)
            self._retired.clear()

    async def _lease(self, byte_size: int, deadline: float) -> Region | None:
        """Returns a region with room for that much; None where there is none."""
        with self._lock:
            fitting = [region for region in self._free if len(region.memory) >= byte_size]
            if fitting:
                region = min(fitting, key=lambda region: len(region.memory))
                self._free.remove(region)
                return region
            wanted = max(_LEAST_REGION_BYTES, 1 << (byte_size - 1).bit_length())
            if wanted > self._settings.most_bytes or time.monotonic() < self._paused_until:
                return None
            # Those that are free are too small: they make room, if there must be.
            self._free.sort(key=lambda region: -len(region.memory))
            missing = self._byte_size + wanted - self._settings.most_bytes
            while missing > 0 and self._free:
                self._retired.append(self._free.pop())
                missing -= len(self._retired[-1].memory)
        await self._sweep(deadline)
        generation = self._generation
        if self._known_generation != generation:
            try:
                await self._check_version(deadline)
            except grpc.RpcError as exc:
                self._pause(exc)
                return None
            self._known_generation = generation
        made = self._made(wanted, generation)
        return made if made is not None and await self._register(made, deadline) else None

    def _made(self, byte_size: int, generation: int) -> Region | None:
        """Returns a new region, which the server does not know yet; None where there is no memory left."""
        with self._lock:
            if self._byte_size + byte_size > self._settings.most_bytes:
                return None
            self._byte_size += byte_size
        try:
            return Region(byte_size, generation)
        except OSError as exc:
            with self._lock:
                self._byte_size -= byte_size
            if exc.errno not in _FULL:
                raise InvalidInputError(
                    f"`shared_memory` needs a folder {_FOLDER} that can be written ({exc.strerror}); leave it out",
                    target=self._target,
                ) from exc
            log_event(logging.WARNING, "shared_memory_full", target=self._target, reason=exc.strerror)
            self._paused_until = time.monotonic() + _PAUSE_S
            return None

    async def _register(self, region: Region, deadline: float) -> bool:
        """Returns whether the server knows the region now."""
        registration = service_pb2.SystemSharedMemoryRegisterRequest(
            name=region.name, key=f"/{region.name}", offset=0, byte_size=len(region.memory)
        )
        ended = registered = False
        try:
            await self._ask("SystemSharedMemoryRegister", registration, deadline)
            registered = True
        except grpc.RpcError as exc:
            ended = not is_unanswered(exc)
            self._pause(exc)
        finally:
            region.unlink()
            with self._lock:
                if ended:
                    self._close(region)
                elif not registered:
                    self._retired.append(region)  # perhaps the server has it, and the answer was lost
        return registered

    async def _check_version(self, deadline: float) -> None:
        version = (await self._ask("ServerMetadata", service_pb2.ServerMetadataRequest(), deadline)).version
        if is_too_old(version):
            least = ".".join(map(str, _LEAST_TRITON))
            raise InvalidInputError(
                f"`shared_memory` needs Triton {least} (24.09) at {self._target}, which is {version}: before, a region"
                " that is given up in use ends the server; leave it out",
                target=self._target,
            )

    def _pause(self, error: grpc.RpcError) -> None:
        """Lets requests travel in messages for a while after a server could not be asked, or raises what it said."""
        kind, said = error_kind(error), error.details() or "no reason given"
        if is_unanswered(error):
            # Whatever ails it, the request itself will show.
            self._paused_until = time.monotonic() + _PAUSE_S
            return
        raised: type[TritonpressError] = InvalidInputError
        why = "it cannot open this process's: it is another user's, or has a /dev/shm of its own; let them share it"
        if kind is AccessDeniedError:
            raised, why = kind, "it is guarded; give its token (`Options.metadata`)"
        raise raised(
            f"the server at {self._target} refuses `shared_memory`: {why}, or leave it out; it says: {said}",
            target=self._target,
        ) from error

    async def _sweep(self, deadline: float, *, patience_s: float = _PATIENCE_S) -> None:
        """Unregisters those that were given up, and that the server does not use any more.

        It says that it uses one for a moment after its answer, which is waited for.
        """
        with self._lock:
            if not self._retired or time.monotonic() < self._next_sweep:
                return
            self._next_sweep = time.monotonic() + _SWEEP_S
            retired, self._retired = self._retired, []
        end = time.monotonic() + patience_s
        try:
            while retired := [region for region in retired if not await self._unregistered(region, deadline)]:
                if time.monotonic() >= min(end, deadline):
                    return
                await self._sleep(_MOMENT_S)
        except (grpc.RpcError, TritonpressError):
            return  # it cannot be asked: another time
        finally:
            with self._lock:
                self._retired += [region for region in retired if not region.memory.closed]

    async def _unregistered(self, region: Region, deadline: float) -> bool:
        """Returns whether the region is given up; False where the server uses it."""
        named = service_pb2.SystemSharedMemoryUnregisterRequest(name=region.name)
        try:
            await self._ask("SystemSharedMemoryUnregister", named, deadline)
        except grpc.RpcError as exc:
            if _IN_USE.search(exc.details() or ""):
                return False
            raise
        with self._lock:
            self._close(region)
        return True

    def _close(self, region: Region) -> None:
        """Gives the memory up; under the lock."""
        self._byte_size -= len(region.memory)
        region.memory.close()


def _aligned(byte_size: int) -> int:
    return -(-byte_size // _ALIGNMENT) * _ALIGNMENT


def is_too_old(version: str) -> bool:
    """Returns whether that Triton does not know which of its regions are in use; an unreadable version is too old."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is None or tuple(map(int, numbers.groups())) < _LEAST_TRITON
