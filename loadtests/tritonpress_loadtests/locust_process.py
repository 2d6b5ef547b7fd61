"""The process of a closed loop: Locust as a library, stage after stage, as `generator_protocol` says.

It is a process of its own because Locust patches the standard library for gevent.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import gevent
import psutil
from gevent.event import Event
from gevent.queue import Queue
from locust.env import Environment
from tritonpress_client import Options, connecting

from tritonpress_loadtests.generator_protocol import BEAT_S, TICK_S, Order, emit, is_stop, parse_arguments, start_of
from tritonpress_loadtests.recorder import Recorder
from tritonpress_loadtests.scenario import LoadedScenario, load_scenario
from tritonpress_loadtests.users import USERS_A_PROCESS, user_class


class _LoadGenerator:
    """Runs stages of a scenario with one Locust environment."""

    def __init__(self, loaded: LoadedScenario, url: str, options: Options) -> None:
        self._loaded = loaded
        self._stop = Event()
        self._user = user_class(loaded)
        self._user.host, self._user.options = url, options
        environment = Environment(user_classes=[self._user], catch_exceptions=False)
        environment.events.request.add_listener(self._on_request)  # type: ignore[no-untyped-call]
        self._runner = environment.create_local_runner()
        self._lines: Queue[str] = Queue()
        gevent.spawn(self._read)

    def _read(self) -> None:
        """Takes lines without keeping Locust's greenlets from running; a wish to stop reaches the stage in hand.

        Or that which is about to begin: until its line has its turn, behind the stage, it holds.
        """
        line = "first"
        while line:
            line = str(gevent.get_hub().threadpool.apply(sys.stdin.readline))
            if is_stop(line):
                self._stop.set()
            self._lines.put(line)

    def run(self) -> None:
        """Runs what is ordered until there are no more orders."""
        try:
            while line := self._lines.get():
                if (order := Order.parse(line, self._loaded)) is None:
                    self._stop.clear()
                    continue
                self._user.first = order.process * USERS_A_PROCESS
                self._resize(order.users)
                emit({"event": "ready"})
                if (start_s := start_of(self._lines.get)) is None:
                    break
                self._measure(order, start_s)
        finally:
            self._runner.quit()

    def _measure(self, order: Order, start_s: float) -> None:
        """Lets the users send for the stage's duration, waits for the last answers and reports.

        A process that wakes late begins then, and holds its load for the whole duration.
        """
        duration_s = order.stage.duration_s
        self._recorder = Recorder(self._loaded.models, duration_s, self._loaded.scenario.timeout_s)
        self._stop.wait(max(0.0, start_s - time.monotonic()))
        cpu_s = time.process_time()
        beat = gevent.spawn(self._beat)
        self._start_s = time.monotonic()
        self._user.gate.open()
        while (elapsed_s := time.monotonic() - self._start_s) < duration_s and not self._stop.is_set():
            self._stop.wait(min(TICK_S, duration_s - elapsed_s))
            self._tick(order.users)
        self._user.gate.close()
        elapsed_s = time.monotonic() - self._start_s
        self._user.gate.drain()
        beat.kill()
        emit(
            {
                "event": "stage",
                "duration_s": elapsed_s,
                "began_late_s": max(0.0, self._start_s - start_s),
                "cpu_share": (time.process_time() - cpu_s) / (time.monotonic() - self._start_s),
                "rss_bytes": psutil.Process().memory_info().rss,
                "most_in_flight": order.users,
                **self._recorder.state(),
            }
        )

    def _on_request(self, *, exception: BaseException | None, context: dict[str, Any], **_: Any) -> None:
        drawn, at_s = context["drawn"], context["started_s"] - self._start_s
        if exception is None:
            end_s = context["ended_s"] - self._start_s
            self._recorder.answered(drawn.place, drawn.up_to, at_s, end_s, alone=context["alone"])
        else:
            self._recorder.failed(drawn.place, at_s, str(exception))

    def _beat(self) -> None:
        while True:
            due_s = time.monotonic() + BEAT_S
            gevent.sleep(BEAT_S)
            self._recorder.beat(time.monotonic() - due_s)

    def _resize(self, users: int) -> None:
        """Brings the users to that number, all connected and held back."""
        self._user.gate.close()
        if users:
            # Locust stops users at this rate too.
            self._runner.start(users, spawn_rate=max(users, self._runner.user_count))
        elif self._runner.user_count:
            self._runner.stop()
        while self._user.gate.connected != users:
            gevent.sleep(0.01)

    def _tick(self, users: int) -> None:
        emit(
            {
                "event": "tick",
                "elapsed_s": time.monotonic() - self._start_s,
                "requests": self._recorder.requests,
                "failed": self._recorder.failures,
                "in_flight": users,
                "p50_ms": self._recorder.take_recent_p50_ms(),
            }
        )


def main() -> None:
    """Runs the stages that the conductor orders."""
    arguments = parse_arguments(__doc__)
    try:
        _LoadGenerator(load_scenario(arguments.scenario), arguments.url, connecting.options(arguments)).run()
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
