"""What one build of a workload has computed and the next need not compute again, such as calibrated ranges."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any


class Kept:
    """Values by a key that says all that they depend on; each is a file of its own."""

    def __init__(self, folder: Path | None = None, also: Path | None = None) -> None:
        """Reads from `folder`, which need not exist, and `also` from another; without `folder`, it keeps nothing."""
        self._folder = folder
        self._also = also
        self._values: dict[str, Any] = {}

    def get(self, key: str) -> Any | None:
        """Returns the value that was put under `key`; None if there is none, or it cannot be read any more."""
        for folder in (self._folder, self._also):
            if key in self._values or folder is None:
                continue
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                entry = json.loads(_file(folder, key).read_text(encoding="utf-8"))
                if entry["key"] == key:
                    self._values[key] = entry["value"]
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Takes `value`, which JSON can hold, under `key`, until it is saved."""
        if self._folder is not None:
            self._values[key] = value

    def save(self, *, others: bool = False) -> None:
        """Writes the values that were asked for or put; removes those that nobody asks for any more.

        Args:
            others: Whether these stay.

        Raises:
            OSError: The folder cannot be written.
        """
        if self._folder is None or not (self._values or self._folder.exists()):
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        files = {_file(self._folder, key): {"key": key, "value": value} for key, value in self._values.items()}
        for path in set() if others else set(self._folder.glob("*.json")) - set(files):
            path.unlink()
        for path, entry in files.items():
            new = path.with_suffix(".new")
            new.write_text(json.dumps(entry), encoding="utf-8")
            new.replace(path)


NOTHING = Kept()


def _file(folder: Path, key: str) -> Path:
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
