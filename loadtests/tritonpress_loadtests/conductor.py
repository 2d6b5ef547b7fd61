"""Starts the load generators' processes and leads them through stages; see `generator_protocol`."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tritonpress_loadtests.errors import LoadGeneratorError
from tritonpress_loadtests.stages import Stage

Progress = Callable[[dict[str, Any]], None]

_START_IN_S = 0.05
_STOP_S = 10.0
_MODULES = {True: "tritonpress_loadtests.open_loop", False: "tritonpress_loadtests.locust_process"}


class Conductor:
    """Load generators of both loops, started when they are first needed; a context manager that ends them.

    Args:
        scenario: The scenario's file.
        url: What is loaded.
        processes: How many processes make the load of each stage.
        security: Arguments that say how the server is trusted, and who asks.
    """

    def __init__(self, scenario: Path, url: str, *, processes: int = 1, security: Sequence[str] = ()) -> None:
        self._command = [str(scenario), "--url", url, *security]
        self._count = processes
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
        for generator in self._all():
            if self.interrupted:
                generator.process.kill()
            else:
                generator.process.terminate()
        self.interrupted = True

    def run(self, stage: Stage, number: int, *, progress: Progress, before: Callable[[], None]) -> list[dict[str, Any]]:
        """Returns each process's `stage` event.

        Args:
            stage: What to send.
            number: The stage's place, which its draws depend on.
            progress: Called with the sum of the processes' ticks, twice a second.
            before: Called when all are ready, before the first request.

        Raises:
            LoadGeneratorError: A process ended without a result.
        """
        generators = self._generators(stage.is_open)
        for generator in generators:
            order = {"stage": stage.model_dump(exclude_unset=True), "number": number}
            generator.say({**order, "process": generator.place, "of": self._count})
        self._collect(stage.is_open, "ready", lambda ticks: None)
        before()
        start_s = time.monotonic() + _START_IN_S
        for generator in generators:
            generator.say({"start_s": start_s})
        return self._collect(stage.is_open, "stage", lambda ticks: progress(_sum(ticks)))

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
                    _started(_MODULES[is_open], self._command, place, self._folder, self._lines[is_open])
                )
                for place in range(self._count)
            ]
        return self._started[is_open]

    def _all(self) -> Iterator[_Generator]:
        for generators in self._started.values():
            yield from generators


class _Generator:
    """One process."""

    def __init__(self, process: subprocess.Popen[str], place: int, log: Path) -> None:
        self.process = process
        self.place = place
        self._log = log

    def say(self, order: dict[str, Any]) -> None:
        # A process that has ended is found by its end of output.
        with contextlib.suppress(BrokenPipeError):
            stdin: IO[str] = self.process.stdin  # type: ignore[assignment]
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()

    def last_words(self) -> str:
        status = self.process.wait(_STOP_S)
        said = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        reason = next((line for line in reversed(said) if line.strip()), "it said nothing")
        return f"the load generator ended with status {status}: {reason}"


@contextlib.contextmanager
def _started(
    module: str, arguments: list[str], place: int, folder: Path, lines: queue.Queue[tuple[int, dict[str, Any] | None]]
) -> Iterator[_Generator]:
    """Starts a process whose events go to `lines`, and None at its end; ends it in time."""
    log_path = folder / f"{module}-{place}.txt"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # A session of its own: Ctrl-C reaches this process alone, which then asks for an orderly end.
            start_new_session=True,
        )

    def read() -> None:
        for line in process.stdout or ():
            lines.put((place, json.loads(line)))
        lines.put((place, None))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield _Generator(process, place, log_path)
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


def _sum(ticks: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the processes' latest ticks as one."""
    medians = [tick["p50_ms"] for tick in ticks if tick["p50_ms"] is not None]
    return {
        "event": "tick",
        "elapsed_s": max(tick["elapsed_s"] for tick in ticks),
        **{key: sum(tick[key] for tick in ticks) for key in ("requests", "failed", "in_flight")},
        "p50_ms": sum(medians) / len(medians) if medians else None,
    }
