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
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol

import numpy as np

from visit.records import IncompleteError

ROUNDS = 3
SLICE_S = 0.25
WARM_UP_S = 90.0
"""For a worker's first execution of a shape: kernels are loaded, or compiled."""
ASK_S = 15.0
"""For a slice, whose executions may each take a second."""


class WorkerError(Exception):
    """A worker ended, or did not answer in time."""


class RefusalError(WorkerError):
    """A worker answers that it cannot."""


class Worker:
    """A process that measures one engine."""

    def __init__(self, command: Sequence[str], *, ready_s: float, environment: Mapping[str, str] | None = None) -> None:
        """Starts `command`, which has to say that it is ready within `ready_s`.

        Raises:
            WorkerError: It does not; RefusalError if it says why.
        """
        self._messages = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the worker
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                text=True,
                env=environment,
            )
        except OSError as exc:
            self._messages.close()
            raise WorkerError(f"{command[0]}: {exc.strerror}") from exc
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
            raise self._ended()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise self._ended() from exc
        return self._read(within_s)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._messages):
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
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RefusalError(answer["error"])
        return answer

    def _ended(self) -> WorkerError:
        """Returns the error of a process that is no more, with its last words."""
        status = self._process.wait()
        self._messages.seek(0)
        said = [line.strip() for line in self._messages if line.strip()] or ["it said nothing"]
        return WorkerError(f"the worker ended with status {status} ({said[-1][:300]})")


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


def started(
    commands: Mapping[str, Sequence[str]], environments: Mapping[str, Mapping[str, str]], *, ready_s: float
) -> tuple[dict[str, Worker], dict[str, WorkerError]]:
    """Returns the workers that are ready, which are to be closed, and why the others are not; all start at once.

    Args:
        commands: By name.
        environments: Of those that have one of their own.
        ready_s: How long each may take.
    """
    workers, failed = {}, {}
    with ThreadPoolExecutor(max_workers=len(commands)) as pool:
        starting = {
            name: pool.submit(Worker, command, ready_s=ready_s, environment=environments.get(name))
            for name, command in commands.items()
        }
    for name, start in starting.items():
        try:
            workers[name] = start.result()
        except WorkerError as exc:
            failed[name] = exc
    return workers, failed


def contest(
    workers: Mapping[str, Worker],
    batch: int,
    length: int,
    *,
    left_s: Callable[[], float],
    late: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Returns `{"sequences_per_s": {worker: its rounds' median and middle 80 %, or why there are none}}`.

    They are asked in turn, so that what changes with time changes for all of them. Each request has a limit of its own:
    what one worker takes is not taken from the others.

    Args:
        workers: By name.
        batch: Sequences of an execution.
        length: Tokens of each.
        left_s: Returns what is left of the call, which no request outlasts.
        late: Why workers that belong to it have not started.

    Raises:
        IncompleteError: A worker has no figure; those of the others are in it.
    """
    rounds: dict[str, list[float]] = {name: [] for name in workers}
    failed = dict(late)
    request = {"batch": batch, "length": length, "seconds": SLICE_S}
    # The first round is the warm-up: kernels are compiled and clocks rise in it.
    for limit_s in (WARM_UP_S, *[ASK_S] * ROUNDS):
        for name, worker in workers.items():
            if name in failed:
                continue
            try:
                answer = worker.ask(request, within_s=min(limit_s, left_s()))
                rounds[name].append(answer["sequences_per_s"])
            except WorkerError as exc:
                failed[name] = str(exc)
    found: dict[str, dict[str, Any]] = {name: {"error": why} for name, why in failed.items()}
    for name, values in rounds.items():
        if name not in failed:
            low, median, high = np.percentile(values[1:], [10, 50, 90])
            found[name] = {"median": float(median), "low": float(low), "high": float(high)}
    figures = {"sequences_per_s": found}
    if failed:
        raise IncompleteError("; ".join(f"{name}: {why}" for name, why in failed.items()), figures)
    return figures


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


def image() -> dict[str, str]:
    """Returns the environment of the machine's own Python: without the kit's interpreter and libraries."""
    kit = str(Path(os.environ["PYTHONHOME"]).parent) if "PYTHONHOME" in os.environ else None
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    if kit is not None:
        for name in ("LD_LIBRARY_PATH", "PATH"):
            parts = [part for part in kept.get(name, "").split(os.pathsep) if part and not part.startswith(kit)]
            kept[name] = os.pathsep.join(parts)
        if not kept["LD_LIBRARY_PATH"]:
            del kept["LD_LIBRARY_PATH"]
    return kept | {"PYTHONPATH": path_of_package()}
