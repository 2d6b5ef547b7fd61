"""What is measured, a JSON line each, written as it comes: a visit may end at any moment."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Records:
    """The lines of one step: in `work`, where the next call finds what is done, and in `out`, which comes back."""

    def __init__(self, step: str, work: Path, out: Path, budget_s: float) -> None:
        self.step = step
        self.work = work
        self._end = time.monotonic() + budget_s
        self._paths = [folder / f"{step}.jsonl" for folder in {work.resolve(): None, out.resolve(): None}]
        for path in self._paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        # Of an earlier call on the same machine, whose `out` was another.
        lines = self._paths[0].read_text(encoding="utf-8").splitlines() if self._paths[0].exists() else []
        self._done = {json.loads(line)["item"] for line in lines if json.loads(line)["status"] == "done"}

    @property
    def left_s(self) -> float:
        """The seconds that the step still has."""
        return self._end - time.monotonic()

    def write(self, item: str, status: str, **what: Any) -> None:
        """Adds a line.

        Args:
            item: What was done, unique in the step.
            status: "done", "failed" or "not run".
            what: The figures, or why not.
        """
        entry = {"step": self.step, "item": item, "status": status, **what, "at": round(time.time(), 1)}
        print(json.dumps(entry), flush=True)
        for path in self._paths:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def item(self, name: str, measure: Callable[[], dict[str, Any]], *, needs_s: float = 0.0) -> None:
        """Writes what `measure` returns, unless it is done already or the step has less than `needs_s` left.

        Its failure, of whatever kind, is its line and not the step's end.
        """
        if name in self._done:
            return
        if self.left_s < needs_s:
            self.write(name, "not run", why=f"needs {needs_s:.0f} s, the step has {max(0.0, self.left_s):.0f} s left")
            return
        start = time.monotonic()
        try:
            figures = measure()
        except Exception as exc:  # noqa: BLE001 - one item that fails must not cost the visit the others
            self.write(name, "failed", why=f"{type(exc).__name__}: {' '.join(str(exc).split())[:600]}")
            return
        self._done.add(name)
        self.write(name, "done", **figures, took_s=round(time.monotonic() - start, 1))


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of all steps in `folder`, the last of each item."""
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            entries[entry["step"], entry["item"]] = entry
    return list(entries.values())
