"""Calls to the servers of a client: its settings, what it knows of them, and who is told of each call."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tritonclient.grpc import service_pb2

from tritonpress_client.balancer import Balancer
from tritonpress_client.budget import LatencyWindow, RetryBudget
from tritonpress_client.credentials import check_secrecy, sent_metadata
from tritonpress_client.endpoint import Endpoint
from tritonpress_client.observers import CallEnd
from tritonpress_client.options import Options, checked_timeout
from tritonpress_client.race import Race
from tritonpress_client.targets import Targets
from tritonpress_client.transport import Flight, Transport

if TYPE_CHECKING:
    from tritonpress_client.shared_memory import Regions

_PROBE_S = 2.0
_all_calls: weakref.WeakSet[Calls] = weakref.WeakSet()


class Calls:
    """Calls to whichever of the servers is best, with the connection's settings."""

    def __init__(self, targets: str | Sequence[str], transport: Transport, *, timeout_s: Any, options: Options) -> None:
        self.timeout_s = checked_timeout(timeout_s)
        self.options = options
        self.transport = transport
        self.balancer = Balancer(options.balancing)
        self._targets = Targets(targets, self.balancer, transport, options)
        check_secrecy(self._targets.given, options)
        self._regions: dict[Endpoint, Regions] = {}
        if options.shared_memory is not None:
            from tritonpress_client.shared_memory import check_targets

            check_targets(self._targets.given, options)
        self._new_past()
        self._closed = False
        _all_calls.add(self)

    @property
    def address(self) -> str:
        """The servers' addresses as they were given, for messages."""
        return ", ".join(self._targets.given)

    def _new_past(self) -> None:
        self._budget = RetryBudget(self.options.retries.budget, self.options.retries.budget_burst)
        self._latencies = LatencyWindow()

    def reset_after_fork(self) -> None:
        """Goes on in a forked process with connections of its own."""
        self._new_past()
        self.balancer.reset_after_fork()
        for regions in self._regions.values():
            regions.reset_after_fork()

    def deadline(self) -> float:
        """Returns until when a call that begins now may take, by `time.monotonic()`."""
        return time.monotonic() + self.timeout_s

    async def close(self) -> None:
        """Closes the channels."""
        self._closed = True
        try:
            for regions in list(self._regions.values()):
                await regions.close(time.monotonic() + _PROBE_S)
        finally:
            for endpoint in self.balancer.endpoints:
                if (channel := endpoint.forget_channel()) is not None:
                    await self.transport.close_channel(channel)  # type: ignore[attr-defined]

    async def call(self, method: str, request: Any, *, model: str = "", deadline: float | None = None) -> Any:
        """Returns the answer of one of the servers.

        Args:
            method: gRPC's method.
            request: Its message.
            model: The model's name, for messages and for the choice of the server.
            deadline: By `time.monotonic()`; the connection's `timeout_s` from now by default.

        Raises:
            TritonpressError: See `tritonpress_client.errors`.
        """
        race = Race(self, method, request, model, self.deadline() if deadline is None else deadline)
        if not self.options.observers:
            return await race.run({})
        handles: list[Any] = []
        context: dict[str, str] = {}
        for observer in self.options.observers:
            handle, sent = observer.started(method, model)
            handles.append(handle)
            context.update(sent)
        started = time.monotonic()
        error: BaseException | None = None
        try:
            return await race.run(context)
        except BaseException as exc:
            error = exc
            raise
        finally:
            end = CallEnd(method, model, race.target, time.monotonic() - started, race.attempts, error)
            for observer, handle in zip(self.options.observers, handles, strict=True):
                observer.ended(handle, end)

    def probe(self, endpoint: Endpoint, model: str) -> None:
        """Lets a server that was left out be asked, in the background, whether it is to be taken back."""
        try:
            self.transport.background(lambda: self.ready_at(endpoint, model))
        except RuntimeError as exc:  # no thread is left
            self.balancer.failed(endpoint, str(exc))

    async def ready_at(self, endpoint: Endpoint, model: str) -> None:
        """Asks a server that was left out whether it serves the model, and takes it back if so."""
        ready = False
        # Whatever it raises: a trial without an end would leave the server out for ever.
        with contextlib.suppress(Exception, asyncio.CancelledError):
            name, request = (
                ("ModelReady", service_pb2.ModelReadyRequest(name=model))
                if model
                else ("ServerReady", service_pb2.ServerReadyRequest())
            )
            ready = (await self._ask(endpoint, name, request, time.monotonic() + _PROBE_S)).ready
        if ready:
            self.balancer.succeeded(endpoint)
        else:
            self.balancer.failed(endpoint, "the model is not ready")

    def regions(self, endpoint: Endpoint) -> Regions | None:
        """Returns the memory that is shared with a server; None where it is not asked for."""
        settings = self.options.shared_memory
        if settings is None:
            return None
        known = self._regions.get(endpoint)
        if known is None:
            from tritonpress_client.shared_memory import Regions

            ask = functools.partial(self._ask, endpoint)
            known = Regions(endpoint.target, settings, ask, self.transport.sleep)
            known = self._regions.setdefault(endpoint, known)
        return known

    async def _ask(self, endpoint: Endpoint, method: str, request: Any, deadline: float) -> Any:
        """Returns the answer of that server, which is asked once, and given a moment at most.

        Raises:
            grpc.RpcError: It has none.
            TritonpressError: It cannot be asked.
        """
        metadata = sent_metadata(self.options, {})
        call = self.transport.start(
            endpoint.method(method),
            request,
            timeout_s=min(_PROBE_S, max(0.001, deadline - time.monotonic())),
            metadata=metadata,
            alone=True,
        )
        flight = Flight(endpoint, time.monotonic(), call)
        await self.transport.first([flight], None)
        if flight.error is not None:
            raise flight.error
        return flight.response


def _after_fork() -> None:
    for calls in _all_calls:
        calls.reset_after_fork()


os.register_at_fork(after_in_child=_after_fork)
