"""The process that makes the load: Locust as a library, stage after stage, reporting JSON lines on standard output.

It is a process of its own because Locust patches the standard library for gevent. `tritonpress_loadtests.run` starts it
as `python -m tritonpress_loadtests.locust_process SCENARIO --url HOST:PORT --samples DIR` and reads:

    {"event": "tick",  "stage": 0, "users": 4, "warm_up": false, "elapsed_s": …, "duration_s": …, "requests": …,
                       "failed": …, "p50_ms": …}                              twice a second
    {"event": "stage", "stage": 0, "users": 4, "planned_duration_s": …, "duration_s": …,
                       "errors": {model: {message: count}}, "generator_cpu_share": …, "models": [rows of `model_rows`]}
    {"event": "end", "interrupted": false}

A stage's samples lie in `DIR/stage-0.npy`, float64 (requests answered, 3): sent at (s from the stage's start), latency
(ms), the model's place in the scenario. SIGTERM ends the stage in hand early and reports it. The end of the reader ends
the process, by the next tick.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gevent
import numpy as np
from gevent.event import Event
from locust.env import Environment
from tritonpress_client import Connection, ModelStatistics

from tritonpress_loadtests.results import Samples, model_rows
from tritonpress_loadtests.scenario import LoadedScenario, load_scenario
from tritonpress_loadtests.users import user_class

_TICK_S = 0.5
_MOST_MESSAGES = 20
_MOST_SNAPSHOTS = 20  # a server that others load never stands still
_SETTLING_S = 0.03


class _Recorder:
    """Keeps every request of a stage, in full resolution: Locust's own percentiles are rounded."""

    def __init__(self, models: Sequence[str]) -> None:
        self._places = {model: place for place, model in enumerate(models)}
        self.reset()

    def reset(self) -> None:
        self.origin = time.time()
        self.sent_s = array("d")
        self.latency_ms = array("d")
        self.places = array("d")
        self.errors: dict[str, Counter[str]] = {model: Counter() for model in self._places}

    @property
    def samples(self) -> Samples:
        return np.column_stack([self.sent_s, self.latency_ms, self.places])

    @property
    def failed(self) -> int:
        return sum(errors.total() for errors in self.errors.values())

    def on_request(
        self, *, name: str, response_time: float, start_time: float, exception: BaseException | None, **_: Any
    ) -> None:
        if exception is None:
            self.sent_s.append(start_time - self.origin)
            self.latency_ms.append(response_time)
            self.places.append(self._places[name])
        else:
            errors = self.errors[name]
            message = f"{type(exception).__name__}: {exception}"
            # A message may hold something of the request; what cannot be grouped must not fill the memory.
            known = message in errors or len(errors) < _MOST_MESSAGES
            errors[message if known else "other"] += 1

    def recent_p50_ms(self) -> float | None:
        return float(np.median(self.latency_ms[-200:])) if self.latency_ms else None


class _LoadGenerator:
    """Runs the stages of a scenario with one Locust environment."""

    def __init__(self, loaded: LoadedScenario, url: str, samples: Path) -> None:
        self._loaded = loaded
        self._samples = samples
        self._stop = Event()
        self._recorder = _Recorder(loaded.models)
        self._user = user_class(loaded)
        self._user.host = url
        environment = Environment(user_classes=[self._user], catch_exceptions=False)
        environment.events.request.add_listener(self._recorder.on_request)  # type: ignore[no-untyped-call]
        self._runner = environment.create_local_runner()
        self._connection = Connection(url, timeout_s=loaded.scenario.timeout_s)

    def run(self, scale: float) -> None:
        """Runs warm-up and stages, their durations multiplied by `scale`."""
        gevent.signal_handler(signal.SIGTERM, self._stop.set)
        scenario = self._loaded.scenario
        try:
            if scenario.warm_up_s:
                self._send_for(-1, max(stage.users for stage in scenario.stages), scenario.warm_up_s * scale)
            for number, stage in enumerate(scenario.stages):
                if not self._stop.is_set():
                    self._measure(number, stage.users, stage.duration_s * scale)
        finally:
            self._runner.quit()
            self._connection.close()
        _emit({"event": "end", "interrupted": self._stop.is_set()})

    def _measure(self, number: int, users: int, duration_s: float) -> None:
        """Runs a stage between two snapshots of the server's statistics, both taken while no request is in flight."""
        self._resize(users)
        before = self._settled_statistics()
        cpu_s = time.process_time()
        elapsed_s = self._send_for(number, users, duration_s)
        cpu_share = (time.process_time() - cpu_s) / elapsed_s
        after = self._settled_statistics()
        np.save(self._samples / f"stage-{number}.npy", self._recorder.samples)
        _emit(
            {
                "event": "stage",
                "stage": number,
                "users": users,
                "planned_duration_s": duration_s,
                "duration_s": elapsed_s,
                "errors": self._recorder.errors,
                "generator_cpu_share": cpu_share,
                "models": model_rows(before, after),
            }
        )

    def _settled_statistics(self) -> list[ModelStatistics]:
        """Returns the server's statistics once they stand still: Triton answers a request first and counts it then."""
        latest = self._connection.statistics()
        for _ in range(_MOST_SNAPSHOTS):
            gevent.sleep(_SETTLING_S)
            earlier, latest = latest, self._connection.statistics()
            if latest == earlier:
                break
        return latest

    def _send_for(self, number: int, users: int, duration_s: float) -> float:
        """Lets the users send for that long and waits for the last answers; returns how long they sent, in s."""
        self._resize(users)
        self._recorder.reset()
        started = time.perf_counter()
        self._user.gate.open()
        while (elapsed_s := time.perf_counter() - started) < duration_s and not self._stop.is_set():
            self._stop.wait(min(_TICK_S, duration_s - elapsed_s))
            self._tick(number, users, time.perf_counter() - started, duration_s)
        self._user.gate.close()
        elapsed_s = time.perf_counter() - started
        self._user.gate.drain()
        return elapsed_s

    def _resize(self, users: int) -> None:
        """Brings the users to that number, all connected and held back."""
        self._user.gate.close()
        # Locust stops users at this rate too.
        self._runner.start(users, spawn_rate=max(users, self._runner.user_count))
        while self._user.gate.connected != users:
            gevent.sleep(0.01)

    def _tick(self, number: int, users: int, elapsed_s: float, duration_s: float) -> None:
        failed = self._recorder.failed
        _emit(
            {
                "event": "tick",
                "stage": number,
                "users": users,
                "warm_up": number < 0,
                "elapsed_s": elapsed_s,
                "duration_s": duration_s,
                "requests": len(self._recorder.latency_ms) + failed,
                "failed": failed,
                "p50_ms": self._recorder.recent_p50_ms(),
            }
        )


def _emit(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def main() -> None:
    """Runs the scenario named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--url", required=True)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--duration-scale", type=float, default=1.0)
    arguments = parser.parse_args()
    try:
        _LoadGenerator(load_scenario(arguments.scenario), arguments.url, arguments.samples).run(
            arguments.duration_scale
        )
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
