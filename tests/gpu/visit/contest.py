"""Measures engines against each other, each in a process of its own, in turn and several times.

A worker reads a JSON line a request and answers with one: `{"batch": 32, "length": 128, "seconds": 0.5}` gets
`{"sequences_per_s": …}`, or `{"error": …}`. What else it prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

ROUNDS = 3
SLICE_S = 0.25


class WorkerError(Exception):
    """A worker ended, or did not answer in time."""


class Worker:
    """A process that measures one engine."""

    def __init__(self, command: Sequence[str], *, ready_s: float, environment: Mapping[str, str] | None = None) -> None:
        """Starts `command`, which has to say that it is ready within `ready_s`.

        Raises:
            WorkerError: It does not.
        """
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        try:
            self.about = self._read(ready_s)
        except WorkerError:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, request: Mapping[str, Any], *, within_s: float) -> dict[str, Any]:
        """Returns the answer to `request`.

        Raises:
            WorkerError: There is none within the time, or it is an error.
        """
        if self._process.stdin is None or self._process.poll() is not None:
            raise WorkerError(f"the worker ended with status {self._process.returncode}; see its messages")
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise WorkerError(f"the worker ended with status {self._process.wait()}; see its messages") from exc
        return self._read(within_s)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            # What was written and never read cannot be flushed any more.
            with suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()

    def _read(self, within_s: float) -> dict[str, Any]:
        stream = self._process.stdout
        if stream is None or not select.select([stream], [], [], within_s)[0]:
            # What it would say later would be taken for the next answer.
            self._process.kill()
            raise WorkerError(f"the worker did not answer within {within_s:.0f} s")
        line = stream.readline()
        if not line:
            raise WorkerError(f"the worker ended with status {self._process.wait()}; see its messages")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer


class Measured(Protocol):
    """What a worker has: runs a shape for some seconds and returns the figures."""

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]: ...


def work(load: Callable[[], tuple[dict[str, Any], Measured]], refusals: tuple[type[Exception], ...]) -> None:
    """Is a worker: loads, says what it is, and answers until its input ends.

    Args:
        load: Returns what the worker says of itself, and what measures.
        refusals: What loading and measuring raise where they cannot.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        about, measure = load()
    except refusals as exc:
        say({"error": f"{type(exc).__name__}: {' '.join(str(exc).split())[:400]}"})
        return
    say(about)
    for line in sys.stdin:
        try:
            say(measure(json.loads(line)))
        except refusals as exc:
            say({"error": f"{type(exc).__name__}: {' '.join(str(exc).split())[:400]}"})


def contest(workers: Mapping[str, Worker], batch: int, length: int, *, within_s: float) -> dict[str, Any]:
    """Returns `{"sequences_per_s": {worker: its rounds' median and middle 80 %, or why there are none}}`.

    They are asked in turn, so that what changes with time changes for all of them.
    """
    rounds: dict[str, list[float]] = {name: [] for name in workers}
    failed: dict[str, str] = {}
    request = {"batch": batch, "length": length, "seconds": SLICE_S}
    end = time.monotonic() + within_s
    for _ in range(ROUNDS + 1):
        for name, worker in workers.items():
            if name in failed:
                continue
            try:
                answer = worker.ask(request, within_s=max(1.0, end - time.monotonic()))
                rounds[name].append(answer["sequences_per_s"])
            except WorkerError as exc:
                failed[name] = str(exc)
    found: dict[str, dict[str, Any]] = {name: {"error": why} for name, why in failed.items()}
    for name, values in rounds.items():
        if name not in failed:
            # The first is not counted: kernels are compiled and clocks rise in it.
            low, median, high = np.percentile(values[1:], [10, 50, 90])
            found[name] = {"median": float(median), "low": float(low), "high": float(high)}
    return {"sequences_per_s": found}


def run_for(seconds: float, batch: int, run: Callable[[int], float]) -> dict[str, Any]:
    """Returns the sequences/s of executions of `batch` sequences that last about `seconds`.

    Args:
        seconds: How long.
        batch: The sequences of an execution.
        run: Takes how many executions are to be made, and returns the seconds that they took.
    """
    count, took = 1, run(1)
    while took < seconds / 4 and count < 1 << 16:
        count = max(count + 1, min(count * 16, round(count * seconds / 2 / max(took, 1e-6))))
        took = run(count)
    count = max(1, round(count * seconds / max(took, 1e-6)))
    took = run(count)
    return {"sequences_per_s": batch * count / took, "executions": count, "ms": took / count * 1e3}


def module(name: str) -> list[str]:
    """Returns the arguments that run a module of this package, whichever the interpreter."""
    return ["-m", f"visit.{name}"]


def path_of_package() -> str:
    """Returns the folder that has this package."""
    return str(Path(__file__).resolve().parent.parent)
