"""How a load generator's process is told what to do: JSON lines both ways, the same for open and closed loops.

`tritonpress_loadtests.conductor` starts `python -m tritonpress_loadtests.open_loop` (or `locust_process`) with a
scenario, and says on standard input, stage after stage:

    {"stage": {keys of a Stage}, "number": 0, "process": 0, "of": 1}    prepare: connect, make the schedule
    {"start_s": 12345.6}                                                go, at that time of the monotonic clock

The process answers on standard output:

    {"event": "ready"}
    {"event": "tick", "elapsed_s": …, "requests": …, "failed": …, "in_flight": …, "p50_ms": …}     twice a second
    {"event": "stage", "duration_s": …, "cpu_share": …, "rss_bytes": …, …}        see `Recorder.state`

SIGTERM ends the stage in hand early. The end of standard input, or of the reader, ends the process.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonpress_client import connecting

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
    def parse(cls, line: str) -> Order:
        """Returns the order of a line."""
        order = json.loads(line)
        return cls(Stage.model_validate(order["stage"]), order["number"], order["process"], order["of"])

    @property
    def users(self) -> int:
        """This process's users; the first ones have one more where they do not divide."""
        users = self.stage.users or 0
        return users // self.of + (self.process < users % self.of)


def start_of(line: str) -> float:
    """Returns when to go, by the monotonic clock in s."""
    return float(json.loads(line)["start_s"])


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
