"""The Locust user: asks, waits for the answer, asks again. Importing this patches the process for gevent.

Locust's way is a closed loop: a user that waits for a slow answer sends nothing meanwhile, so that the load falls when
the server slows down. Latency is counted from the moment of sending.
"""

from __future__ import annotations

import time
from typing import ClassVar

import gevent
import grpc.experimental.gevent
from gevent.event import Event
from locust import User, constant, task
from tritonpress_client import TritonpressError

from tritonpress_loadtests.scenario import LoadedScenario

# Before the first channel, else the first call blocks all users.
grpc.experimental.gevent.init_gevent()


class Gate:
    """Lets all users send, or holds them back once their answers are there; open unless it is closed."""

    def __init__(self) -> None:
        self.connected = 0
        self._in_flight = 0
        self._open = Event()
        self._idle = Event()
        self._open.set()
        self._idle.set()

    def open(self) -> None:
        """Lets the users send."""
        self._open.set()

    def close(self) -> None:
        """Holds back each user at its next request."""
        self._open.clear()

    def drain(self) -> None:
        """Waits for the answers of the requests in flight, which their deadlines bound."""
        self._idle.wait()

    def __enter__(self) -> None:
        self._open.wait()
        self._in_flight += 1
        self._idle.clear()

    def __exit__(self, *error: object) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()


class ScenarioUser(User):
    """A user of a scenario; `user_class` fills in which."""

    abstract = True
    host = "127.0.0.1:8001"
    wait_time = constant(0)
    loaded: ClassVar[LoadedScenario]
    gate: ClassVar[Gate]
    started: ClassVar[int] = 0

    def on_start(self) -> None:
        """Connects; a server that cannot be reached shows in the requests."""
        cls = type(self)
        self.draws = self.loaded.draws(cls.started)
        cls.started += 1
        # gRPC waits for each answer in a thread of gevent's pool; in its default of 10, more users would queue for one.
        pool = gevent.get_hub().threadpool
        pool.maxsize = max(pool.maxsize, cls.started + 8)
        timeout_s = self.loaded.scenario.timeout_s
        self.clients = {
            kind.request.model: kind.workload.connect(self.host, model=kind.request.model, timeout_s=timeout_s)
            for kind in self.loaded.requests
        }
        try:
            for kind in self.loaded.requests:
                kind.workload.check(self.clients[kind.request.model])
        except TritonpressError:
            pass
        finally:
            self.gate.connected += 1

    def on_stop(self) -> None:
        """Closes the connections: a channel left open keeps the process from ending."""
        self.gate.connected -= 1
        for client in self.clients.values():
            client.__exit__(None, None, None)

    @task
    def ask(self) -> None:
        """Sends one query and reports it to Locust under its model's name, in ms that are not rounded."""
        kind, query = next(self.draws)
        client = self.clients[kind.request.model]
        error: TritonpressError | None = None
        with self.gate:
            sent, started = time.time(), time.perf_counter()
            try:
                kind.workload.send(client, query)
            except TritonpressError as exc:
                error = exc
            latency_ms = (time.perf_counter() - started) * 1e3
            self.environment.events.request.fire(
                request_type="grpc",
                name=kind.request.model,
                response_time=latency_ms,
                response_length=0,
                start_time=sent,
                exception=error,
                context={},
            )


def user_class(loaded: LoadedScenario) -> type[ScenarioUser]:
    """Returns the Locust user of a scenario."""
    name = f"{loaded.scenario.name.title().replace('_', '')}User"
    return type(name, (ScenarioUser,), {"loaded": loaded, "gate": Gate(), "abstract": False})
