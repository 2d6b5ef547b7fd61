"""Files of requests: a text a line, JSONL, or CSV with a header."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tritonpress_client.errors import InvalidInputError


@dataclass(frozen=True)
class Request:
    """What one line asks."""

    line: int
    """Its number in the file, from 1; where it was given by hand, its place."""
    texts: dict[str, str]
    """By the request's keys."""


def requests(given: list[str], path: Path | None, *, key: str) -> list[Request]:
    """Returns what is given, or what the file holds: *.jsonl and *.csv under one key, others a text a line.

    Raises:
        InvalidInputError: Neither or both are there, or the file is at fault.
    """
    if bool(given) == (path is not None):
        raise InvalidInputError("give either TEXT or --file FILE")
    if path is None:
        return [Request(number, {key: text}) for number, text in enumerate(given, start=1)]
    if path.suffix in (".jsonl", ".csv"):
        return read_requests(path, key)
    found = [Request(number, {key: line}) for number, line in _lines(path)]
    if not found:
        raise InvalidInputError(f"{path} holds no {key}; put one on each line")
    return found


def read_requests(path: Path, *keys: str) -> list[Request]:
    """Returns the requests of a file, at least one; *.csv has a header with `keys`, everything else an object a line.

    Raises:
        InvalidInputError: The file cannot be read, holds nothing, or a line has no text under one of `keys`.
    """
    if path.suffix == ".csv":
        found = list(_rows(path, keys))
    else:
        found = [Request(number, _entry(path, number, line, keys)) for number, line in _lines(path)]
    if not found:
        raise InvalidInputError(f"{path} holds no {keys[0]}; put one on each line")
    return found


def read_text(path: Path) -> str:
    """Returns the file's text, without a byte-order mark.

    Raises:
        InvalidInputError: The file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise InvalidInputError(f"cannot read {path}: {exc.strerror}; check the path") from exc
    except UnicodeDecodeError as exc:
        raise InvalidInputError(f"{path} is not UTF-8 ({exc.reason} at byte {exc.start}); convert it") from exc


def for_csv(text: str) -> io.StringIO:
    """Returns what `csv` reads `text` from, with fields as long as it: all its readers take 131,072 characters else."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    return io.StringIO(text, newline="")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines that hold something, with their numbers."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line


def _rows(path: Path, keys: tuple[str, ...]) -> Iterator[Request]:
    reader = csv.DictReader(for_csv(read_text(path)), strict=True)
    try:
        if missing := set(keys) - set(reader.fieldnames or ()):
            raise InvalidInputError(f"{path} must have a header with {', '.join(keys)}; it lacks {min(missing)}")
        for row in reader:
            if any(row[key] is None for key in keys):
                raise InvalidInputError(f"{path}:{reader.line_num} has fewer columns than the header; complete it")
            yield Request(reader.line_num, {key: row[key] for key in keys})
    except csv.Error as exc:
        # The line that it is at; `line_num` is that of the last row.
        raise InvalidInputError(f"{path}:{reader.reader.line_num} is not CSV ({exc}); quote it") from exc


def _entry(path: Path, number: int, line: str, keys: tuple[str, ...]) -> dict[str, str]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError(f"{path}:{number} is not JSON ({exc}); write one object a line") from exc
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in keys):
        wanted = ", ".join(f'"{key}": TEXT' for key in keys)
        raise InvalidInputError(f"{path}:{number} must be an object with {wanted}")
    return {key: entry[key] for key in keys}
