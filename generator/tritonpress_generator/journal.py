"""What a long measurement has found so far, a line each, so that one that is killed goes on where it was."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Results by their key; who measures asks for each before it computes it, in the same order again."""

    def __init__(self, path: Path) -> None:
        """Reads the file, which need not exist.

        A line that a kill has left unfinished is cut off; one that a crash has spoilt is as if it were not there.
        """
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        self._asked: set[str] = set()
        self.replayed_s = 0.0
        """How long it took to find what was asked for and was known."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            return
        whole, _, rest = path.read_bytes().rpartition(b"\n")
        if rest:
            os.truncate(path, len(whole) + 1 if whole else 0)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                entry = json.loads(line)
                self._known[entry["key"]] = entry["result"]

    def get(self, key: str) -> dict[str, Any] | None:
        """Returns the result; None if it is not known."""
        result = self._known.get(key)
        if result is not None and key not in self._asked:
            self._asked.add(key)
            self.replayed_s += result["seconds"]
        return result

    def put(self, key: str, about: Mapping[str, Any], result: dict[str, Any]) -> None:
        """Takes a result; it is on the disk when this returns.

        Args:
            key: By which it is asked for.
            about: What `key` stands for, for people.
            result: Has the `seconds` that it took.
        """
        self._known[key] = result
        self._asked.add(key)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**about, "key": key, "result": result}) + "\n")
            file.flush()
            os.fsync(file.fileno())
