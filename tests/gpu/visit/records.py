"""What is measured, a JSON line each, written as it comes: a visit may end at any moment."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE = "visit.jsonl"
_LINE = 150
"""Characters of an item on the terminal, whose end alone comes back."""


class IncompleteError(Exception):
    """An item lacks a figure: it has to be measured again, and what there is of it is kept."""

    def __init__(self, why: str, figures: dict[str, Any]) -> None:
        super().__init__(why)
        self.figures = figures


class Records:
    """The lines of a visit: kept in `work`, where the next call finds them, and in `out`, which comes back."""

    def __init__(self, work: Path, out: Path, budget_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begins a call.

        Args:
            work: Stays between the calls on one machine.
            out: Comes back; empty in every call.
            budget_s: Of all that the call does.
            clock: Seconds since whenever.
        """
        self.work, self.out = work, out
        self._clock = clock
        self._end = clock() + budget_s
        self.kept = work / "kept"
        self.kept.mkdir(parents=True, exist_ok=True)
        # What the last call brings back is all that there is.
        shutil.copytree(self.kept, out, dirs_exist_ok=True)
        self._done = {entry["item"] for entry in read(out) if entry["status"] == "done"}

    @property
    def left_s(self) -> float:
        """The seconds that the call still has, at least 0."""
        return max(0.0, self._end - self._clock())

    def done(self, item: str) -> bool:
        """Says whether `item` was measured, in this call or an earlier one."""
        return item in self._done

    def write(self, item: str, status: str, **what: Any) -> None:
        """Adds a line.

        Args:
            item: What was done, unique in the visit.
            status: "done", "failed" or "not run".
            what: The figures, or why not.
        """
        entry = {"item": item, "status": status, **what, "at": round(time.time(), 1)}
        print(f"{self.left_s:4.0f} s left  {item}: {status} {what.get('why', '')}"[:_LINE].rstrip(), flush=True)
        for folder in (self.kept, self.out):
            with (folder / FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def item(self, name: str, measure: Callable[[], dict[str, Any]], *, needs_s: float = 0.0) -> None:
        """Writes what `measure` returns, unless it is done already or the call has less than `needs_s` left."""
        if self.done(name) or not self.suffices(name, needs_s):
            return
        start = self._clock()
        with self.surviving(name):
            figures = measure()
            self._done.add(name)
            self.write(name, "done", **figures, took_s=round(self._clock() - start, 1))

    @contextmanager
    def surviving(self, name: str) -> Iterator[None]:
        """Makes a failure, of whatever kind, the line of `name` and not the call's end."""
        try:
            yield
        except IncompleteError as exc:
            self.write(name, "failed", why=str(exc), **exc.figures)
        except Exception as exc:  # noqa: BLE001 - what fails must not cost the visit the rest
            self.write(name, "failed", why=f"{type(exc).__name__}: {' '.join(str(exc).split())[:600]}")

    def suffices(self, name: str, needs_s: float) -> bool:
        """Says whether there is time for `name`; writes that it is not run where there is not."""
        if self.left_s >= needs_s:
            return True
        self.write(name, "not run", why=f"needs {needs_s:.0f} s, the call has {self.left_s:.0f} s left")
        return False


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines in `folder`: the last of each item, or the last of those that were tried."""
    path = folder / FILE
    entries: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        entry = json.loads(line)
        if entry["status"] != "not run" or entry["item"] not in entries:
            entries[entry["item"]] = entry
    return list(entries.values())
