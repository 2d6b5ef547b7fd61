"""Starts the load generators' processes and leads them through stages; see `generator_protocol`."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from tritonpress_loadtests.errors import LoadGeneratorError
from tritonpress_loadtests.scenario import LoadedScenario
from tritonpress_loadtests.stages import Stage

Progress = Callable[[dict[str, Any]], None]

_START_IN_S = 0.05
_STOP_S = 10.0
_QUESTIONS = 8
_SHOWN = 200
_MODULES = {True: "tritonpress_loadtests.open_loop", False: "tritonpress_loadtests.locust_process"}


class Conductor:
    """Load generators of both loops, started when they are first needed; a context manager that ends them.

    Args:
        loaded: The scenario.
        url: What is loaded.
        processes: How many processes of this host make the load of each stage.
        via: Of each process on another host, the command that runs its last argument there by a shell.
        security: Arguments that say how the server is trusted, and who asks.
    """

    def __init__(
        self,
        loaded: LoadedScenario,
        url: str,
        *,
        processes: int = 1,
        via: Sequence[str] = (),
        security: Sequence[str] = (),
    ) -> None:
        self._arguments = [str(loaded.path.resolve()), "--url", url, *security]
        self._sha256 = loaded.sha256
        self._hosts = [*[None] * processes, *via]
        self._stack = contextlib.ExitStack()
        self._started: dict[bool, list[_Generator]] = {}
        self._lines: dict[bool, queue.Queue[tuple[int, dict[str, Any] | None]]] = {
            is_open: queue.Queue() for is_open in _MODULES
        }
        self.interrupted = False

    def __enter__(self) -> Conductor:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonpress-load-")))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def interrupt(self) -> None:
        """Ends the stage in hand early; may be called from a signal's handler, a second time to end everything."""
        again, self.interrupted = self.interrupted, True
        for generator in self._all():
            if again:
                generator.process.kill()
            else:
                generator.say({"stop": True})

    @contextlib.contextmanager
    def interrupted_by_signals(self) -> Iterator[None]:
        """Takes SIGINT and SIGTERM as a wish to end, and the second one as an order."""

        def pass_on(number: int, frame: FrameType | None) -> None:
            self.interrupt()

        if threading.current_thread() is not threading.main_thread():
            yield  # signals belong to the main thread
            return
        # A handler that is None is not Python's, and could not be given back.
        numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not None]
        before = {number: signal.signal(number, pass_on) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, stage: Stage, number: int, *, progress: Progress, before: Callable[[], None]) -> list[dict[str, Any]]:
        """Returns each process's `stage` event.

        Args:
            stage: What to send.
            number: The stage's place, which its draws depend on.
            progress: Called with the sum of the processes' ticks, twice a second.
            before: Called when all are ready, before the first request.

        Raises:
            LoadGeneratorError: A process ended without a result, or there was a wish to end before the first request.
        """
        generators = self._generators(stage.is_open)
        self._check_wanted()  # what was not started yet has not heard the wish to end
        for generator in generators:
            order = {"stage": stage.model_dump(exclude_unset=True), "number": number, "sha256": self._sha256}
            generator.say({**order, "process": generator.place, "of": len(self._hosts)})
        self._collect(stage.is_open, "ready", lambda ticks: None)
        ahead_s = {generator.place: self._ahead_s(stage.is_open, generator) for generator in generators}
        before()
        self._check_wanted()  # what heard it before the order has ignored it
        start_s = time.monotonic() + _START_IN_S
        for generator in generators:
            generator.say({"start_s": start_s + ahead_s[generator.place]})
        return self._collect(stage.is_open, "stage", lambda ticks: progress(_sum(ticks)))

    def _check_wanted(self) -> None:
        if self.interrupted:
            raise LoadGeneratorError("interrupted before the stage began")

    def _ahead_s(self, is_open: bool, generator: _Generator) -> float:
        """Returns how far a process's clock is ahead of this one's, in s.

        Source: Cristian 1989, "Probabilistic clock synchronization": of several questions the one that is answered the
        quickest counts, and the answer was given in the middle of it; the error is at most half of what it took.
        """
        if self._hosts[generator.place] is None:
            return 0.0
        answers = []
        for _ in range(_QUESTIONS):
            asked_s = time.monotonic()
            generator.say({"clock": True})
            place, event = self._lines[is_open].get()
            if event is None:
                raise LoadGeneratorError(self._started[is_open][place].last_words())
            answered_s = time.monotonic()
            answers.append((answered_s - asked_s, event["monotonic_s"] - (asked_s + answered_s) / 2))
        return float(min(answers)[1])

    def _collect(
        self, is_open: bool, kind: str, on_ticks: Callable[[list[dict[str, Any]]], None]
    ) -> list[dict[str, Any]]:
        """Returns one event of that kind of each process, in their order."""
        generators = self._started[is_open]
        found: dict[int, dict[str, Any]] = {}
        ticks: dict[int, dict[str, Any]] = {}
        while len(found) < len(generators):
            place, event = self._lines[is_open].get()
            if event is None:
                raise LoadGeneratorError(generators[place].last_words())
            if event["event"] == "tick":
                ticks[place] = event
                if place == min(ticks):
                    on_ticks(list(ticks.values()))
            elif event["event"] == kind:
                found[place] = event
        return [found[place] for place in sorted(found)]

    def _generators(self, is_open: bool) -> list[_Generator]:
        if is_open not in self._started:
            self._started[is_open] = [
                self._stack.enter_context(
                    _started(self._command(_MODULES[is_open], host), place, self._folder, self._lines[is_open])
                )
                for place, host in enumerate(self._hosts)
            ]
        return self._started[is_open]

    def _command(self, module: str, host: str | None) -> list[str]:
        """Returns what starts a process on this host, or another."""
        arguments = ["-m", module, *self._arguments]
        if host is None:
            return [sys.executable, *arguments]
        return [*shlex.split(host), shlex.join(["python3", *arguments])]

    def _all(self) -> Iterator[_Generator]:
        for generators in self._started.values():
            yield from generators


class _Generator:
    """One process."""

    def __init__(self, process: subprocess.Popen[str], place: int, log: Path) -> None:
        self.process = process
        self.place = place
        self._log = log
        self.stray = ""
        """What it said that is no event."""

    def say(self, order: dict[str, Any]) -> None:
        stdin: IO[str] = self.process.stdin  # type: ignore[assignment]
        if stdin.closed:  # the load is over
            return
        # A process that has ended is found by its end of output. One write, past the buffer: a signal's handler may say
        # something while this one waits for room.
        with contextlib.suppress(BrokenPipeError):
            os.write(stdin.fileno(), f"{json.dumps(order)}\n".encode())

    def last_words(self) -> str:
        if self.stray:
            return (
                f"the load generator said {self.stray[:_SHOWN]!r}, which is no event; what starts it (such as ssh, and"
                " the files of its login) must print nothing"
            )
        try:
            ended = f"ended with status {self.process.wait(_STOP_S)}"
        except subprocess.TimeoutExpired:
            ended = "says no more"
        said = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        reason = next((line for line in reversed(said) if line.strip()), "it said nothing")
        return f"the load generator {ended}: {reason}"


@contextlib.contextmanager
def _started(
    command: list[str], place: int, folder: Path, lines: queue.Queue[tuple[int, dict[str, Any] | None]]
) -> Iterator[_Generator]:
    """Starts a process whose events go to `lines`, and None at its end; ends it in time."""
    with tempfile.NamedTemporaryFile(prefix=f"{place}-", suffix=".txt", dir=folder, delete=False) as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            errors="replace",
            # A session of its own: Ctrl-C reaches this process alone, which then asks for an orderly end.
            start_new_session=True,
        )

    generator = _Generator(process, place, Path(log.name))

    def read() -> None:
        try:
            for line in process.stdout or ():
                event = _event(line)
                if event is None:
                    generator.stray = line.strip() or "an empty line"
                    return
                lines.put((place, event))
        finally:
            lines.put((place, None))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield generator
    finally:
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(_STOP_S)
        if process.stdout is not None:
            process.stdout.close()


def _event(line: str) -> dict[str, Any] | None:
    """Returns what a process tells; None of a line that is no event."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _sum(ticks: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the processes' latest ticks as one."""
    medians = [tick["p50_ms"] for tick in ticks if tick["p50_ms"] is not None]
    return {
        "event": "tick",
        "elapsed_s": max(tick["elapsed_s"] for tick in ticks),
        **{key: sum(tick[key] for tick in ticks) for key in ("requests", "failed", "in_flight")},
        "p50_ms": sum(medians) / len(medians) if medians else None,
    }
