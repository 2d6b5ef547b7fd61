"""How the logic of a call reaches gRPC, and waits: by blocking the thread, or in asyncio's event loop.

Both transports have the same methods. Those of `BlockingTransport` are coroutines that never suspend.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import queue
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import grpc

_R = TypeVar("_R")
Work = Callable[[], Coroutine[Any, Any, _R]]


class Flight:
    """A request that was sent: `call` is gRPC's object; `response` or `error` is set once it has ended.

    `region` is the memory that its inputs lie in, where they are shared.
    """

    __slots__ = ("call", "endpoint", "error", "region", "response", "started")

    def __init__(self, endpoint: Any, started: float, call: Any) -> None:
        self.endpoint = endpoint
        self.started = started
        self.call = call
        self.region: Any = None
        self.response: Any = None
        self.error: grpc.RpcError | None = None


class Transport(Protocol):
    """What the logic of a call needs of the world."""

    def channel(self, target: str, credentials: Any, options: Any, compression: Any) -> Any:
        """Returns an open channel."""

    def owner(self) -> object:
        """Returns what a channel belongs to, beyond which it cannot be used."""

    def start(self, method: Any, request: Any, *, timeout_s: float, metadata: Any, alone: bool) -> Any:
        """Returns gRPC's object for a request that is on its way; `alone` says that no other will be beside it."""

    async def first(self, flights: Sequence[Flight], timeout_s: float | None) -> Flight | None:
        """Returns a flight that has ended, with its result in it; None if none has in that time."""

    def cancel(self, flight: Flight) -> None:
        """Tells the server that nobody waits for the answer any more."""

    async def sleep(self, seconds: float) -> None:
        """Waits."""

    async def in_thread(self, function: Callable[[], _R], timeout_s: float) -> _R:
        """Returns what a function that may block returns; raises TimeoutError."""

    def background(self, work: Work[None]) -> None:
        """Starts work that nobody waits for; it raises nothing."""

    async def each(self, work: Sequence[Work[_R]], limit: int, done: Callable[[_R], None]) -> None:
        """Runs all of the work, `limit` at a time, and hands each result to `done` in the caller's thread."""


class BlockingTransport:
    """Blocks the calling thread, or greenlet."""

    @staticmethod
    def run(coroutine: Coroutine[Any, Any, _R]) -> _R:
        """Returns what the coroutine returns; it must await nothing but this transport."""
        try:
            coroutine.send(None)
        except StopIteration as done:
            result: _R = done.value
            return result
        coroutine.close()
        raise RuntimeError("a blocking client awaited what is not its transport's")

    def channel(self, target: str, credentials: Any, options: Any, compression: Any) -> Any:
        if credentials is None:
            return grpc.insecure_channel(target, options, compression)
        return grpc.secure_channel(target, credentials, options, compression)

    async def close_channel(self, channel: Any) -> None:
        channel.close()

    def owner(self) -> object:
        return None

    def start(self, method: Any, request: Any, *, timeout_s: float, metadata: Any, alone: bool) -> Any:
        if alone:
            # Sent when it is waited for: a plain call takes a thread's hand-over less than a future.
            return lambda: method(request, timeout=timeout_s, metadata=metadata)
        return method.future(request, timeout=timeout_s, metadata=metadata)

    async def first(self, flights: Sequence[Flight], timeout_s: float | None) -> Flight | None:
        first = flights[0]
        if not isinstance(first.call, grpc.Future):
            return _settle(first, first.call)
        ended = threading.Event()
        for flight in flights:
            flight.call.add_done_callback(lambda _: ended.set())
        ended.wait(timeout_s)
        for flight in flights:
            if flight.call.done():
                return _settle(flight, flight.call.result)
        return None

    def cancel(self, flight: Flight) -> None:
        if isinstance(flight.call, grpc.Future):
            flight.call.cancel()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def in_thread(self, function: Callable[[], _R], timeout_s: float) -> _R:
        outcome: queue.SimpleQueue[tuple[_R | None, Exception | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                outcome.put((function(), None))
            except Exception as exc:  # noqa: BLE001 (raised again in the caller's thread)
                outcome.put((None, exc))

        threading.Thread(target=work, daemon=True).start()
        try:
            result, error = outcome.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def background(self, work: Work[None]) -> None:
        threading.Thread(target=lambda: self.run(work()), daemon=True).start()

    async def each(self, work: Sequence[Work[_R]], limit: int, done: Callable[[_R], None]) -> None:
        outcomes: queue.SimpleQueue[tuple[_R | None, BaseException | None]] = queue.SimpleQueue()
        waiting = iter(work)
        lock, stop = threading.Lock(), threading.Event()

        def take() -> None:
            while not stop.is_set():
                with lock:
                    item = next(waiting, None)
                if item is None:
                    return
                try:
                    outcomes.put((self.run(item()), None))
                except BaseException as exc:  # noqa: BLE001 (raised again in the caller's thread)
                    outcomes.put((None, exc))

        for _ in range(min(limit, len(work))):
            # The caller's, as a task has it: a span is of the trace that is open there.
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=(take,), daemon=True).start()
        try:
            for _ in work:
                result, error = outcomes.get()
                if error is not None:
                    raise error
                done(result)  # type: ignore[arg-type]
        finally:
            stop.set()


class AsyncioTransport:
    """Waits in asyncio's event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    @staticmethod
    def run(coroutine: Coroutine[Any, Any, _R]) -> Coroutine[Any, Any, _R]:
        """Returns the coroutine, for the caller to await."""
        return coroutine

    def channel(self, target: str, credentials: Any, options: Any, compression: Any) -> Any:
        if credentials is None:
            return grpc.aio.insecure_channel(target, options, compression)
        return grpc.aio.secure_channel(target, credentials, options, compression)

    async def close_channel(self, channel: Any) -> None:
        await channel.close()

    def owner(self) -> object:
        return asyncio.get_running_loop()

    def start(self, method: Any, request: Any, *, timeout_s: float, metadata: Any, alone: bool) -> Any:
        return method(request, timeout=timeout_s, metadata=metadata)

    async def first(self, flights: Sequence[Flight], timeout_s: float | None) -> Flight | None:
        if len(flights) == 1 and timeout_s is None:
            return await _awaited(flights[0])
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for flight in flights:
            flight.call.add_done_callback(lambda _: _wake(ended))
        await asyncio.wait([ended], timeout=timeout_s)
        for flight in flights:
            if flight.call.done():
                return await _awaited(flight)
        return None

    def cancel(self, flight: Flight) -> None:
        if flight.call is not None:
            flight.call.cancel()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def in_thread(self, function: Callable[[], _R], timeout_s: float) -> _R:
        try:
            return await asyncio.wait_for(asyncio.to_thread(function), timeout_s)
        except asyncio.TimeoutError:
            raise TimeoutError from None

    def background(self, work: Work[None]) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)  # the loop itself holds it weakly
        task.add_done_callback(self._tasks.discard)

    async def each(self, work: Sequence[Work[_R]], limit: int, done: Callable[[_R], None]) -> None:
        waiting = iter(work)
        running = {asyncio.ensure_future(item()) for item in itertools.islice(waiting, limit)}
        try:
            while running:
                ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    done(task.result())
                    if (item := next(waiting, None)) is not None:
                        running.add(asyncio.ensure_future(item()))
        finally:
            for task in running:
                task.cancel()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _settle(flight: Flight, result: Callable[[], Any]) -> Flight:
    try:
        flight.response = result()
    except grpc.RpcError as exc:
        flight.error = exc
    return flight


async def _awaited(flight: Flight) -> Flight:
    try:
        flight.response = await flight.call
    except grpc.RpcError as exc:
        flight.error = exc
    except asyncio.CancelledError:
        if _is_cancelled():
            raise
        # The call alone was, as its channel is closed: which a blocking client is told so.
        code, nothing = grpc.StatusCode.CANCELLED, grpc.aio.Metadata()
        flight.error = grpc.aio.AioRpcError(code, nothing, nothing, details="Channel closed!")
    return flight


def _is_cancelled() -> bool:
    """Returns whether this task was cancelled; before Python 3.11, which cannot tell, it seems so."""
    if sys.version_info < (3, 11):
        return True
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
