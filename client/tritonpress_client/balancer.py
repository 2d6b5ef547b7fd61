"""Which server gets a request: the one with the fewest outstanding, of those that are well.

A server is left out (its circuit is open) after failures in a row, or at once when its connection is lost and another
is there. When its time is over it is asked whether the model is ready; its share of the requests then grows to a full
one.
Where all are left out, one request at a time is the trial, and the others fail at once.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable

from tritonpress_client.endpoint import Endpoint
from tritonpress_client.observers import log_event
from tritonpress_client.options import Balancing

_LEAST_WEIGHT = 0.1
_MISSING_S = 2.0


class Balancer:
    """The servers of a client.

    Attributes:
        endpoints: The servers, left out or not.
        generation: Grows whenever a server has come back, and may serve something else than before.
    """

    def __init__(self, settings: Balancing) -> None:
        self.endpoints: tuple[Endpoint, ...] = ()
        self.generation = 0
        self._settings = settings
        self._lock = threading.Lock()

    def replace(self, targets: Iterable[str], create: Callable[[str], Endpoint]) -> None:
        """Takes these servers from now on, the known ones as they are."""
        with self._lock:
            known = {endpoint.target: endpoint for endpoint in self.endpoints}
            self.endpoints = tuple(known.get(target) or create(target) for target in dict.fromkeys(targets))

    def choose(self, model: str, tried: Collection[Endpoint]) -> tuple[Endpoint | None, list[Endpoint]]:
        """Returns a server for a request, which counts as outstanding there, and those whose time to come back it is.

        Args:
            model: The model's name; one of whom a server has said that it lacks it is asked elsewhere.
            tried: The servers that had this request already, taken only if there is no other.

        Returns:
            None for the server where all are left out, and it is none's time to be tried.
        """
        if len(self.endpoints) == 1 and not self.endpoints[0].open_until:
            endpoint = self.endpoints[0]
            with self._lock:
                endpoint.outstanding += 1
            return endpoint, []
        now = time.monotonic()
        with self._lock:
            well = [endpoint for endpoint in self.endpoints if not endpoint.open_until]
            due = [e for e in self.endpoints if e.open_until and e.open_until <= now and not e.probing]
            serving = [endpoint for endpoint in well if endpoint.missing.get(model, 0.0) <= now] or well
            if not serving and due:
                serving, due = [random.choice(due)], []
                serving[0].probing = True
            for endpoint in due:
                endpoint.probing = True
            if not serving:
                return None, due
            chosen = min(serving, key=lambda e: (e in tried, self._load(e, now), random.random()))
            chosen.outstanding += 1
            return chosen, due

    def alternatives(self, model: str, tried: Collection[Endpoint]) -> bool:
        """Returns whether a server is well that did not have this request yet."""
        now = time.monotonic()
        return any(
            endpoint not in tried and not endpoint.open_until and endpoint.missing.get(model, 0.0) <= now
            for endpoint in self.endpoints
        )

    def release(self, endpoint: Endpoint) -> None:
        """Counts a request as no longer outstanding."""
        with self._lock:
            endpoint.outstanding = max(0, endpoint.outstanding - 1)

    def succeeded(self, endpoint: Endpoint) -> None:
        """Counts an answer: the server is well, and back if it was left out."""
        if not endpoint.failures and not endpoint.open_until:
            return
        with self._lock:
            was_open, endpoint.failures, endpoint.openings = endpoint.open_until > 0, 0, 0
            endpoint.open_until, endpoint.probing = 0.0, False
            if was_open:
                endpoint.returned = time.monotonic()
                endpoint.missing.clear()
                self.generation += 1
        if was_open:
            log_event(logging.INFO, "server_back", target=endpoint.target)

    def failed(self, endpoint: Endpoint, reason: str, *, lost: bool = False, last_too: bool = True) -> None:
        """Counts a failure, after which the server may be left out.

        Args:
            endpoint: The server.
            reason: For the log.
            lost: Its connection could not be made, or broke.
            last_too: Whether it may be left out where it is the last that is well.
        """
        with self._lock:
            endpoint.failures += 1
            others = any(not other.open_until for other in self.endpoints if other is not endpoint)
            many = endpoint.failures >= self._settings.failures and (others or last_too)
            # Requests that were on their way when it was left out say nothing new.
            opens = endpoint.probing if endpoint.open_until else (lost and others) or many
            if opens:
                seconds = min(self._settings.open_s * 2**endpoint.openings, self._settings.max_open_s)
                # Many clients should not all come back in the same moment.
                endpoint.open_until = time.monotonic() + seconds * random.uniform(0.8, 1.2)
                endpoint.openings += 1
            endpoint.probing = False
        if opens:
            log_event(logging.WARNING, "server_left_out", target=endpoint.target, reason=reason)

    def lacks(self, endpoint: Endpoint, model: str) -> None:
        """Notes that the server does not serve the model, for a while."""
        with self._lock:
            endpoint.missing[model] = time.monotonic() + _MISSING_S
            self.generation += 1

    def reset_after_fork(self) -> None:
        """Goes on in a forked process, where a lock may be held for ever by a thread that is not there."""
        self._lock = threading.Lock()
        for endpoint in self.endpoints:
            endpoint.reset_after_fork()

    def next_trial_s(self) -> float:
        """Returns in how many seconds the first of those that are left out is tried again."""
        return max(0.0, min((e.open_until for e in self.endpoints), default=0.0) - time.monotonic())

    def _load(self, endpoint: Endpoint, now: float) -> float:
        """Returns the outstanding requests, with one more, to the server's share."""
        weight = 1.0
        if endpoint.returned and self._settings.return_s:
            weight = max(_LEAST_WEIGHT, min(1.0, (now - endpoint.returned) / self._settings.return_s))
        return (endpoint.outstanding + 1) / weight
