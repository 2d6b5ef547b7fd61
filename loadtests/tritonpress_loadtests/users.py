"""The Locust user: asks, waits for the answer, asks again. Importing this patches the process for gevent.

Locust's way is a closed loop: a user that waits for a slow answer sends nothing meanwhile, so that the load falls when
the server slows down. Latency is counted from the moment of sending.
"""

from __future__ import annotations

import time
from typing import ClassVar

import gevent
import grpc
import grpc.experimental.gevent
from gevent.event import Event
from locust import User, constant, task
from tritonpress_client import Options, TritonpressError
from tritonpress_client.credentials import sent_metadata
from tritonpress_client.transport import BlockingTransport

from tritonpress_loadtests import wire
from tritonpress_loadtests.scenario import LoadedScenario

# Before the first channel, else the first call blocks all users.
grpc.experimental.gevent.init_gevent()

USERS_A_PROCESS = 10_000
"""A process's users have numbers of their own, so that no two draw the same."""


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
    in_flight: ClassVar[list[int]]
    """By a model's place, this process's requests in flight."""
    options: ClassVar[Options] = Options()
    """How the server is reached."""
    channel: ClassVar[grpc.Channel | None] = None
    first: ClassVar[int] = 0
    """The number of this process's first user, where we started it."""
    started: ClassVar[int] = 0

    def on_start(self) -> None:
        """Joins the process's connection; a server that cannot be reached shows in the requests."""
        cls = type(self)
        # Locust numbers the workers of `--processes`; by itself it has one, of number 0, and an old master says none.
        worker = max(0, getattr(self.environment.runner, "worker_index", 0))
        self.draws = self.loaded.draws(f"user {cls.first + worker * USERS_A_PROCESS + cls.started}")
        cls.started += 1
        # gRPC waits for each answer in a thread of gevent's pool; in its default of 10, more users would queue for one.
        pool = gevent.get_hub().threadpool
        pool.maxsize = max(pool.maxsize, cls.started + 8)
        if cls.channel is None:
            cls.channel = wire.channel(BlockingTransport(), self.host, cls.options)
        self.call = cls.channel.unary_unary(wire.METHOD)
        self.gate.connected += 1

    def on_stop(self) -> None:
        """Closes the connection with the last user: a channel left open keeps the process from ending."""
        self.gate.connected -= 1
        cls = type(self)
        if not self.gate.connected and cls.channel is not None:
            channel, cls.channel = cls.channel, None
            channel.close()

    @task
    def ask(self) -> None:
        """Sends one query and reports it to Locust under its model's name, in ms that are not rounded."""
        drawn = next(self.draws)
        error: LoadedError | None = None
        with self.gate:
            alone = not self.in_flight[drawn.place]
            self.in_flight[drawn.place] += 1
            sent, started_s = time.time(), time.monotonic()
            try:
                metadata = sent_metadata(self.options, {})
                self.call(drawn.payload, timeout=self.loaded.scenario.timeout_s, metadata=metadata)
            except grpc.RpcError as exc:
                error = LoadedError(wire.error_text(exc.code().name, exc.details()))
            except TritonpressError as exc:
                # What gives the metadata has failed; a user that ended for it would be missing in the stages behind.
                error = LoadedError(wire.error_text(type(exc).__name__, str(exc)))
            finally:
                self.in_flight[drawn.place] -= 1
            ended_s = time.monotonic()
            self.environment.events.request.fire(
                request_type="grpc",
                name=self.loaded.models[drawn.place],
                response_time=(ended_s - started_s) * 1e3,
                response_length=0,
                start_time=sent,
                exception=error,
                context={"drawn": drawn, "alone": alone, "started_s": started_s, "ended_s": ended_s},
            )


class LoadedError(Exception):
    """A request without an answer; the message is the call's status and reason, or what kept it from being made."""


def user_class(loaded: LoadedScenario) -> type[ScenarioUser]:
    """Returns the Locust user of a scenario."""
    name = f"{loaded.scenario.name.title().replace('_', '')}User"
    in_flight = [0] * len(loaded.requests)
    return type(name, (ScenarioUser,), {"loaded": loaded, "gate": Gate(), "in_flight": in_flight, "abstract": False})
