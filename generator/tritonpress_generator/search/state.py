"""What a search has found so far, a line each, so that a search that is killed goes on where it was."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tritonpress_generator.search.space import Candidate


class State:
    """Results by their kind and candidate; the search asks for each before it computes it, in the same order again."""

    def __init__(self, path: Path) -> None:
        """Reads the file, which need not exist; a line that a kill has left unfinished is cut off."""
        self._path = path
        self._known: dict[tuple[str, str], dict[str, Any]] = {}
        self._asked: set[tuple[str, str]] = set()
        self.replayed_s = 0.0
        """How long it took to find what was asked for and was known."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            return
        whole, _, rest = path.read_bytes().rpartition(b"\n")
        if rest:
            path.write_bytes(whole + b"\n" if whole else b"")
        for line in whole.splitlines():
            entry = json.loads(line)
            self._known[entry["kind"], Candidate.of(entry["candidate"]).key] = entry["result"]

    def get(self, kind: str, candidate: Candidate) -> dict[str, Any] | None:
        """Returns the result of the kind; None if it is not known."""
        key = kind, candidate.key
        result = self._known.get(key)
        if result is not None and key not in self._asked:
            self._asked.add(key)
            self.replayed_s += result["seconds"]
        return result

    def put(self, kind: str, candidate: Candidate, result: dict[str, Any]) -> None:
        """Takes a result, which has the `seconds` that it took; it is on the disk when this returns."""
        self._known[kind, candidate.key] = result
        self._asked.add((kind, candidate.key))
        entry = {"kind": kind, "candidate": asdict(candidate), "result": result}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
