"""The time of day leaps."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import psutil
from fault_lab import CLIENTS, CLOCK, Lab, Load, judge
from tritonpress_client import Connection, TritonpressError
from tritonpress_generator import builds
from tritonpress_server import TritonServer

LEAPS = 8
"""Whether one does harm, is chance: it has to meet somebody who waits."""


def clock_jump(lab: Lab) -> None:
    """The time of day leaps while requests wait, while a client waits, and while a server drains."""
    file = Path(os.environ[CLOCK])
    try:
        real = time.time()
        _leap(file, 3600)
        lab.promise(3500 < time.time() - real < 3700, "the clock leaps here, so that the rest means something")
        _leap(file, 0)
        _set_queue_timeout(lab)
        for seconds in (3600, -3600):
            taken = _unanswered_s(file, seconds)
            lab.promise(1.5 < taken < 4, f"{seconds:+} s: a client keeps a deadline of 2 s meanwhile ({taken:.1f} s)")
        for seconds in (-3600, 3600):
            _leap_under_load(lab, file, seconds)
    finally:
        shutil.rmtree(file.parent)


def _leap_under_load(lab: Lab, file: Path, seconds: int) -> None:
    with TritonServer(lab.repository, log_path=lab.folder / "log") as server:
        load = Load(server.grpc_url, lab.repository, lab.name)
        # More than are executed at once, so that requests wait in the queue, whose timeout is 8 s.
        with load.by(4 * CLIENTS):
            load.wait_for_answers(20, 20)
            for number in range(1, LEAPS + 1):
                _leap(file, number * seconds)
                time.sleep(lab.seconds / LEAPS)
            answered = load.wait_for_answers(1, 5)
            lab.promise(answered is not None, f"{seconds:+} s: requests are answered after it")
        judge(lab, load)
        lives = psutil.pid_exists(server.pid)
        lab.promise(lives, "the server lives")
        if lives:
            threading.Timer(0.1, _leap, (file, 0)).start()
            began = time.monotonic()
            server.stop()
            drained = time.monotonic() - began
            lab.promise(
                drained < server.settings.drain_s, f"it drains and ends while the clock leaps ({drained:.1f} s)"
            )
    _leap(file, 0)


def _leap(file: Path, seconds: int) -> None:
    with file.open("r+b") as place:
        place.write(seconds.to_bytes(8, "little", signed=True))


def _set_queue_timeout(lab: Lab) -> None:
    """Gives the workload's steps a queue that refuses what has waited for 8 s."""
    for path in lab.repository.glob("*/config.pbtxt"):
        config = builds.read_config(path.parent)
        if config.HasField("dynamic_batching"):
            policy = config.dynamic_batching.default_queue_policy
            policy.timeout_action, policy.default_timeout_microseconds = 0, 8_000_000
            path.write_text(builds.config_text(config), encoding="utf-8")


def _unanswered_s(file: Path, seconds: int) -> float:
    """Returns when a client with a deadline of 2 s gave up on a peer that never answers, while the clock leaps."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        leap = threading.Timer(0.7, _leap, (file, seconds))
        leap.start()
        began = time.monotonic()
        with (
            contextlib.suppress(TritonpressError),
            Connection(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=2) as one,
        ):
            one.server_metadata()
        taken = time.monotonic() - began
        leap.join()
        _leap(file, 0)
    return taken
