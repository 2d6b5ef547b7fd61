"""What every fault of `faults.py` needs: a copy of a repository, clients that know the right answers, a verdict."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tritonpress_client import Connection, Options, TritonpressError
from tritonpress_generator import repository

CLOCK = "TRITONPRESS_FAULTS_CLOCK"
"""The variable that names the file which says by how much the time of day is off."""
CLIENTS = 4
LOST = {"ServerUnreachableError", "ModelUnavailableError", "DeadlineExceededError"}
"""What a client may be told of a server that is away."""


@dataclass
class Lab:
    """One run of a fault."""

    repository: Path
    """A copy, to be changed at will."""
    name: str
    """The workload that is asked."""
    folder: Path
    """Where the fault may write."""
    seconds: float
    """Of each part."""
    minutes: float
    """Of a soak."""
    broken: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Prints what was seen."""
        print(f"  {text}", flush=True)

    def promise(self, kept: bool, text: str) -> None:
        """Prints a promise, and notes it where it was broken."""
        print(f"  {'kept' if kept else 'BROKEN'}: {text}", flush=True)
        if not kept:
            self.broken.append(text)


def copy_workload(repository: Path, name: str, folder: Path) -> Path:
    """Returns `folder`, a repository of this workload alone: others would only have to be loaded."""
    for path in repository.iterdir():
        if path.name == name or path.name.startswith(f"{name}_"):
            shutil.copytree(path, folder / path.name)
    return folder


@contextlib.contextmanager
def asking(ask: Callable[[], None], clients: int, stop: threading.Event) -> Iterator[None]:
    """Runs `ask` in so many threads, which it leaves once `stop` is set."""
    stop.clear()
    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Load:
    """Clients that ask the build's golden requests on and on, and hold each answer to what the manifest says."""

    def __init__(
        self, url: str, model_repo: Path, name: str, *, timeout_s: float = 10.0, options: Options | None = None
    ) -> None:
        golden = repository.read_manifest(model_repo, name)["golden"]
        self._url, self._name, self._timeout_s, self._options = url, name, timeout_s, options
        self._requests, self._tolerance = golden["requests"], float(golden["score_tolerance"])
        self._stop = threading.Event()
        self.reset()

    def reset(self) -> None:
        """Forgets what was seen."""
        self.right = 0
        self.wrong: list[str] = []
        self.failures: Counter[str] = Counter()
        self.said: dict[str, str] = {}
        """The last message of each class of failure."""
        self.strangers: list[str] = []
        """Errors that are none of the client's classes."""
        self.slowest_s = 0.0

    @contextlib.contextmanager
    def by(self, clients: int) -> Iterator[None]:
        """Asks from so many clients, each a request at a time."""
        before, threading.excepthook = threading.excepthook, self._end_of_a_thread
        try:
            with asking(self._ask, clients, self._stop):
                yield
        finally:
            threading.excepthook = before

    def _end_of_a_thread(self, arguments: threading.ExceptHookArgs) -> None:
        self.strangers.append(repr(arguments.exc_value))

    def summary(self) -> str:
        """Returns what was seen, in a line."""
        failures = ", ".join(f"{count} {name}" for name, count in self.failures.items()) or "no failure"
        return f"{self.right} right answers, {len(self.wrong)} wrong, {failures}; slowest {self.slowest_s:.1f} s"

    def wait_for_answers(self, count: int, within_s: float) -> float | None:
        """Returns after how many seconds so many more right answers had come; None if they have not."""
        began, before = time.monotonic(), self.right
        while time.monotonic() - began < within_s:
            if self.right >= before + count:
                return time.monotonic() - began
            time.sleep(0.02)
        return None

    def _ask(self) -> None:
        with Connection(self._url, timeout_s=self._timeout_s, options=self._options) as connection:
            number = 0
            while not self._stop.is_set():
                request = self._requests[number % len(self._requests)]
                number += 1
                tensors = {key: np.array([[text.encode()]], np.object_) for key, text in request["inputs"].items()}
                began = time.monotonic()
                try:
                    self._count(request, connection.infer(self._name, tensors))
                except TritonpressError as exc:
                    self.failures[type(exc).__name__] += 1
                    self.said[type(exc).__name__] = str(exc)
                    time.sleep(0.05)
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def _count(self, request: dict[str, Any], answer: dict[str, Any]) -> None:
        if key := other_output(request["outputs"], answer, self._tolerance):
            self.wrong.append(f"{key} of {request['inputs']}: {answer[key][0]}")
        else:
            self.right += 1


def other_output(
    expected: Mapping[str, Sequence[Any]], answer: Mapping[str, Sequence[Any]], tolerance: float
) -> str | None:
    """Returns the first output that is not as expected; None if all are.

    Args:
        expected: The values of a row, by output, as a manifest has them.
        answer: The outputs of a batch, of which the first row is looked at.
        tolerance: How far a number may be off.
    """
    for key, values in expected.items():
        row = answer[key][0]
        if isinstance(values[0], float):
            same = float(np.abs(np.subtract(row, values)).max()) <= tolerance
        else:
            same = [value.decode() if isinstance(value, bytes) else value for value in row] == values
        if not same:
            return key
    return None


def stubs(pid: int) -> list[psutil.Process]:
    """Returns the Python stubs of a tritonserver."""
    return [child for child in psutil.Process(pid).children(recursive=True) if "stub" in child.name()]


def judge(lab: Lab, load: Load, *, failures: set[str] | None = None) -> None:
    """Holds what clients have seen to what is always promised.

    Args:
        lab: The run.
        load: Its clients.
        failures: The classes of errors that a client may get; none, if it is left out.
    """
    lab.say(load.summary())
    lab.promise(not load.wrong, "no answer is wrong" + (f", got {load.wrong[0]}" if load.wrong else ""))
    lab.promise(not load.strangers, "clients raise their own errors alone" + "".join(load.strangers[:1]))
    allowed = failures or set()
    lab.promise(
        set(load.failures) <= allowed,
        f"clients are told {' or '.join(sorted(allowed))} at most" if allowed else "no request fails",
    )
    for name in set(load.failures) - allowed:
        lab.say(f"{name}: {load.said[name]}")


@contextlib.contextmanager
def small_disk(folder: Path, size: str, *, inodes: int = 0) -> Iterator[Path]:
    """Yields a folder that is a disk of its own, in memory, with real ENOSPC; needs root, or `unshare -rm`."""
    folder.mkdir(parents=True)
    options = f"size={size}" + (f",nr_inodes={inodes}" if inodes else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def fill(folder: Path, *, leave_bytes: int) -> Path:
    """Returns a file that fills the disk of `folder` but for so many bytes."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with filler.open("rb+") as file:
        file.truncate(max(0, filler.stat().st_size - leave_bytes))
    return filler


def with_a_clock_of_its_own() -> None:
    """Runs this program again with `clock.c` in it and in what it starts, whose time of day a file sets off."""
    if CLOCK in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="tritonpress-clock-"))
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
    except OSError as exc:
        sys.exit(f"clock-jump needs a C compiler, cc ({exc.strerror}); apt-get install gcc")
    (folder / "leap").write_bytes(bytes(8))
    environment = {**os.environ, "LD_PRELOAD": str(library), CLOCK: str(folder / "leap")}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)
