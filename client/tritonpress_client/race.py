"""A call: one deadline over all attempts, sent again where that is safe, and to another server where there is one.

An attempt has its share of the deadline. When that is over, another server is asked as well; the first one is not
given up, and the first answer wins. So a server that hangs loses no request, and a slow one is not asked in vain.
Whatever is still on its way when the call ends is cancelled on its server. An order to load or unload a model is sent
to one server once; again only with fresh metadata where access was denied.

Triton's own request timeout is not sent: each step of an ensemble would be given all of it, and honour it only where
its config allows that. gRPC's deadline reaches Triton, which drops what has not begun when it has passed.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grpc

from tritonpress_client.credentials import expire_metadata, sent_metadata
from tritonpress_client.endpoint import Endpoint
from tritonpress_client.errors import (
    AccessDeniedError,
    DeadlineExceededError,
    InvalidInputError,
    ModelUnavailableError,
    ServerError,
    ServerUnreachableError,
    TritonpressError,
    error_kind,
    is_of_a_neighbour,
    is_overloaded,
    is_region_lost,
    is_unanswered,
    translated,
)
from tritonpress_client.observers import log_event
from tritonpress_client.transport import Flight

if TYPE_CHECKING:
    from tritonpress_client.calls import Calls


_MOST_REGIONS_LOST = 2
_ORDERS = ("RepositoryModelLoad", "RepositoryModelUnload")
"""What changes a server: one that does not answer may have done it, and another would do it as well."""


class Race:
    """The attempts of one call."""

    def __init__(self, calls: Calls, method: str, request: Any, model: str, deadline: float) -> None:
        self.target = ""
        self.attempts = 0
        self._calls = calls
        self._method = method
        self._request = request
        self._model = model
        self._deadline = deadline
        self._is_order = method in _ORDERS
        self._tried: list[Endpoint] = []
        self._flights: list[Flight] = []
        self._denied = False
        self._regions_lost = 0

    async def run(self, context: Mapping[str, str]) -> Any:
        """Returns the first answer."""
        calls = self._calls
        self._check_open()
        await calls._targets.resolved(self._deadline)
        calls._budget.deposit()
        last: tuple[grpc.RpcError, str] | None = None
        next_start: float | None = 0.0  # None: no further attempt
        try:
            while True:
                if next_start is not None and next_start <= time.monotonic():
                    next_start = await self._start(context)
                if not self._flights:
                    if next_start is None or next_start >= self._deadline:
                        raise self._unanswered(last) from (last[0] if last else None)
                    await calls.transport.sleep(max(0.0, next_start - time.monotonic()))
                    continue
                wait_s = None if next_start is None else max(0.0, next_start - time.monotonic())
                flight = await calls.transport.first(self._flights, wait_s)
                if flight is None:
                    continue
                if flight.error is not None and flight.error.code() == grpc.StatusCode.CANCELLED:
                    self._check_open(flight.error)
                self._land(flight)
                if flight.error is None:
                    return flight.response
                last = flight.error, flight.endpoint.target
                next_start = self._after(flight)
                if next_start is None and not self._flights:
                    raise self._unanswered(last) from flight.error
        except (ValueError, grpc.aio.UsageError) as exc:
            # gRPC's words for a channel that was closed meanwhile.
            self._check_open(exc)
            raise
        finally:
            self._give_up()

    def _check_open(self, cause: Exception | None = None) -> None:
        """Refuses to go on once the connection is closed, of which the cause may be an effect."""
        if self._calls._closed:
            message = f"the connection to {self._calls.address} is closed; open another one"
            raise InvalidInputError(message, model=self._model, attempts=self.attempts) from cause

    async def _start(self, context: Mapping[str, str]) -> float | None:
        """Sends the request to the best server; returns when the next attempt begins if this one is not answered."""
        calls = self._calls
        self._check_open()
        if self.attempts and not calls._budget.withdraw():
            log_event(logging.DEBUG, "retry_budget_spent", model=self._model)
            return None
        endpoint, due = calls.balancer.choose(self._model, self._tried)
        for other in due:
            calls.probe(other, self._model)
        if endpoint is None:
            return None
        flight = Flight(endpoint, time.monotonic(), None)
        self._flights.append(flight)
        try:
            return await self._send(flight, context)
        except TritonpressError:
            if len(self._flights) == 1:
                raise
            # What is on its way may still be answered.
            self._drop(flight)
            return None

    async def _send(self, flight: Flight, context: Mapping[str, str]) -> float | None:
        """Sends the request to the flight's server; returns when the next attempt begins if this one is not answered.

        Raises:
            TritonpressError: It cannot be sent.
        """
        calls, retries, endpoint = self._calls, self._calls.options.retries, flight.endpoint
        self.target = endpoint.target
        metadata, began = sent_metadata(calls.options, context), flight.started
        now = flight.started = time.monotonic()
        if began < self._deadline <= now and callable(calls.options.metadata):
            raise DeadlineExceededError(
                f"the deadline of {calls.timeout_s:g} s has passed while `Options.metadata` was fetched; raise"
                " `timeout_s`, or let it take less",
                target=calls.address,
                model=self._model,
                attempts=self.attempts,
            )
        self.attempts += 1
        self._tried.append(endpoint)
        left_s = max(0.0, self._deadline - now)
        overtake_s = None
        may_overtake = self.attempts < retries.attempts and not self._is_order
        if may_overtake and calls.balancer.alternatives(self._model, self._tried):
            overtake_s = self._overtake_s(left_s)
        request = self._request
        regions = calls.regions(endpoint)
        if regions is not None and self._method == "ModelInfer" and self._regions_lost < _MOST_REGIONS_LOST:
            request, flight.region = await regions.placed(request, now + self._share_s(left_s))
            left_s = max(0.0, self._deadline - time.monotonic())
        flight.call = calls.transport.start(
            endpoint.method(self._method),
            request,
            timeout_s=left_s,
            metadata=metadata,
            alone=overtake_s is None and len(self._flights) == 1,
        )
        return None if overtake_s is None else now + overtake_s

    def _overtake_s(self, left_s: float) -> float:
        """Returns after how long another server is asked as well."""
        retries, share_s = self._calls.options.retries, self._share_s(left_s)
        after = self._calls._latencies.p95_s() if retries.hedge_after == "p95" else retries.hedge_after
        return share_s if after is None else min(after, share_s)

    def _share_s(self, left_s: float) -> float:
        """Returns this attempt's share of the time that is left."""
        return left_s / (self._calls.options.retries.attempts - self.attempts + 1)

    def _land(self, flight: Flight) -> None:
        """Counts what came of an attempt."""
        calls, endpoint = self._calls, flight.endpoint
        self.target = endpoint.target
        self._flights.remove(flight)
        calls.balancer.release(endpoint)
        error = flight.error
        self._free_region(flight)
        if error is None:
            calls.balancer.succeeded(endpoint)
            if calls.options.retries.hedge_after == "p95":
                calls._latencies.add(time.monotonic() - flight.started)
            share_s = calls.timeout_s / calls.options.retries.attempts
            for other in self._flights:
                if time.monotonic() - other.started >= share_s:
                    calls.balancer.failed(other.endpoint, "another server has overtaken it")
            return
        kind = error_kind(error)
        if kind is ServerUnreachableError:
            calls.balancer.failed(endpoint, error.details() or "lost", lost=True)
        elif kind is DeadlineExceededError:
            calls.balancer.failed(endpoint, "no answer within the deadline")
        elif kind is ServerError:
            # Not what the server says, which may hold a text of the request.
            calls.balancer.failed(endpoint, error.code().name, last_too=False)
        elif kind is ModelUnavailableError and not is_overloaded(error):
            calls.balancer.lacks(endpoint, self._model)
        else:
            calls.balancer.succeeded(endpoint)

    def _free_region(self, flight: Flight) -> None:
        """Gives the memory of a request's inputs back, once it has ended here, and perhaps not on the server."""
        regions = self._calls.regions(flight.endpoint)
        if regions is None or flight.region is None:
            return
        error = flight.error
        answered = flight.response is not None if error is None else not is_unanswered(error)
        regions.release(flight.region, answered=answered, unknown=error is not None and is_region_lost(error))

    def _drop(self, flight: Flight) -> None:
        """Lets the server know that nobody waits for the answer any more."""
        self._flights.remove(flight)
        self._calls.transport.cancel(flight)
        self._calls.balancer.release(flight.endpoint)
        flight.endpoint.probing = False
        self._free_region(flight)

    def _give_up(self) -> None:
        """Drops whatever is still on its way."""
        for flight in list(self._flights):
            self._drop(flight)

    def _after(self, flight: Flight) -> float | None:
        """Returns when the request is sent again after an attempt has failed; None for never."""
        error: Any = flight.error
        calls, retries, kind = self._calls, self._calls.options.retries, error_kind(error)
        if flight.region is not None and is_region_lost(error):
            # Refused unread, by a server that was started anew: no attempt, and the next one has another region. One
            # that loses that too is no single server: this request then travels as it is.
            self._regions_lost += 1
            self.attempts -= 1
            self._tried.remove(flight.endpoint)
            return time.monotonic()
        elsewhere = calls.balancer.alternatives(self._model, self._tried)
        again = not self._is_order and (
            kind is ServerUnreachableError
            or is_of_a_neighbour(error)
            or (kind is ModelUnavailableError and (elsewhere or is_overloaded(error)))
        )
        if kind is AccessDeniedError and not self._denied:
            try:
                self._denied = again = expire_metadata(calls.options)
            except TritonpressError:
                if not self._flights:
                    raise
                # What is on its way may still be answered.
            elsewhere = again
        if not again:
            # A request that is at fault is so everywhere; else what is on its way may still be answered.
            if kind is InvalidInputError:
                self._give_up()
            return None
        if self.attempts >= retries.attempts:
            return None
        log_event(
            logging.DEBUG, "retry", model=self._model, target=self.target, attempt=self.attempts, code=error.code()
        )
        if elsewhere:
            return time.monotonic()
        longest_s = min(retries.max_backoff_s, retries.backoff_s * 2 ** (self.attempts - 1))
        return time.monotonic() + random.uniform(0.0, longest_s)

    def _unanswered(self, last: tuple[grpc.RpcError, str] | None) -> TritonpressError:
        """Returns the error of the call."""
        if last is not None:
            error, target = last
            return translated(
                error, target=target, model=self._model, timeout_s=self._calls.timeout_s, attempts=self.attempts
            )
        calls = self._calls
        return ServerUnreachableError(
            f"no server at {calls.address} takes requests: all have failed in a row; the next trial is in"
            f" {calls.balancer.next_trial_s():.1f} s; see `tritonpress-query health`",
            target=calls.address,
            model=self._model,
        )
