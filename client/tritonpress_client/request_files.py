"""Files of requests: a text a line, or JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tritonpress_client.errors import InvalidInputError


def texts(given: list[str], path: Path | None, *, key: str) -> list[str]:
    """Returns what is given, or what the file holds: a text a line, or in *.jsonl an object a line with `key`.

    Raises:
        InvalidInputError: Neither or both are there, or the file is at fault.
    """
    if bool(given) == (path is not None):
        raise InvalidInputError("give either TEXT or --file FILE")
    if path is None:
        return given
    if path.suffix == ".jsonl":
        return [entry[key] for entry in read_entries(path, key)]
    lines = [line for _, line in _lines(path)]
    if not lines:
        raise InvalidInputError(f"{path} holds no {key}; put one on each line")
    return lines


def read_entries(path: Path, *keys: str) -> list[dict[str, str]]:
    """Returns the file's objects, one a line, at least one; empty lines are left out.

    Raises:
        InvalidInputError: The file cannot be read, holds nothing, or a line has no text under one of `keys`.
    """
    entries = [_entry(path, number, line, keys) for number, line in _lines(path)]
    if not entries:
        raise InvalidInputError(f"{path} holds no {keys[0]}; put one on each line")
    return entries


def read_text(path: Path) -> str:
    """Returns the file's text, without a byte-order mark.

    Raises:
        InvalidInputError: The file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise InvalidInputError(f"cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise InvalidInputError(f"{path} is not UTF-8 ({exc.reason} at byte {exc.start}); convert it") from exc


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines that hold something, with their numbers."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line


def _entry(path: Path, number: int, line: str, keys: tuple[str, ...]) -> dict[str, str]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as exc:
        raise InvalidInputError(f"{path}:{number} is not JSON ({exc}); write one object a line") from exc
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in keys):
        wanted = ", ".join(f'"{key}": TEXT' for key in keys)
        raise InvalidInputError(f"{path}:{number} must be an object with {wanted}")
    return entry
