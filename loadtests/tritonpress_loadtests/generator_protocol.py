"""How a load generator's process is told what to do: JSON lines both ways, the same for open and closed loops.

`tritonpress_loadtests.conductor` starts `python -m tritonpress_loadtests.open_loop` (or `locust_process`) with a
scenario, and says on standard input, stage after stage:

    {"stage": {keys of a Stage}, "number": 0, "process": 0, "of": 1, "sha256": …}    prepare: connect, make the schedule
    {"clock": true}                                                            what time is it by the monotonic clock?
    {"start_s": 12345.6}                                                       go, at that time by the process's clock
    {"stop": true}                                                             end the stage in hand early

The process answers on standard output:

    {"event": "ready"}
    {"event": "clock", "monotonic_s": …}
    {"event": "tick", "elapsed_s": …, "requests": …, "failed": …, "in_flight": …, "p50_ms": …}     twice a second
    {"event": "stage", "duration_s": …, "cpu_share": …, "rss_bytes": …, …}        see `Recorder.state`

So a process may as well be on another host, behind a command that carries both ways, such as ssh. The end of standard
input, or of the reader, ends the process.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonpress_client import connecting

from tritonpress_loadtests.scenario import LoadedScenario
from tritonpress_loadtests.stages import Stage

TICK_S = 0.5
BEAT_S = 0.02


@dataclass(frozen=True)
class Order:
    """A stage, and this process's share of it."""

    stage: Stage
    number: int
    process: int
    of: int

    @classmethod
    def parse(cls, line: str | bytes, loaded: LoadedScenario) -> Order | None:
        """Returns the order of a line; None if it is to stop.

        Ends the process where the order is of another scenario than the one that was read here.
        """
        order = json.loads(line)
        if is_stop(line):
            return None
        if order["sha256"] != loaded.sha256:
            sys.exit(f"{loaded.path} or its queries differ from those of the host that leads; copy them here")
        return cls(Stage.model_validate(order["stage"]), order["number"], order["process"], order["of"])

    @property
    def users(self) -> int:
        """This process's users; the first ones have one more where they do not divide."""
        users = self.stage.users or 0
        return users // self.of + (self.process < users % self.of)


def is_stop(line: str | bytes) -> bool:
    """Says whether a line ends the stage in hand; the end of standard input does so too."""
    return not line or "stop" in json.loads(line)


def start_of(next_line: Callable[[], str | bytes]) -> float | None:
    """Returns when to go, by the monotonic clock in s; None for not at all. Until then it tells the time if asked."""
    while not is_stop(line := next_line()):
        order = json.loads(line)
        if "start_s" in order:
            return float(order["start_s"])
        emit({"event": "clock", "monotonic_s": time.monotonic()})
    return None


def emit(event: dict[str, Any]) -> None:
    """Says something to the conductor."""
    print(json.dumps(event), flush=True)


def parse_arguments(description: str | None) -> argparse.Namespace:
    """Returns `scenario`, `url`, and how the server is trusted and asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--url", required=True)
    connecting.add_security_arguments(parser)
    return parser.parse_args()
