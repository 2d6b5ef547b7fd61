"""Files of queries: a reader takes a file's path (for messages) and its text, and gives the queries in its order.

A workload says by the file's suffix how its queries are read; that a file holds none is refused where it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tritonpress_loadtests.errors import ScenarioError

Query = dict[str, str]
Reader = Callable[[Path, str], list[Query]]


def jsonl(*keys: str) -> Reader:
    """Returns a reader of JSON objects, one a line, with text under each of `keys`; other keys are left out."""

    def read(path: Path, text: str) -> list[Query]:
        queries = []
        for number, line in _lines(text):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as exc:
                raise ScenarioError(f"{path}:{number} is not JSON ({exc}); write one object a line") from exc
            if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in keys):
                raise ScenarioError(f"{path}:{number} must be an object with text under: {', '.join(keys)}")
            queries.append({key: entry[key] for key in keys})
        return queries

    return read


def tsv(*columns: str) -> Reader:
    """Returns a reader of values between tabs, without quoting; the first line names the columns, others are left."""

    def read(path: Path, text: str) -> list[Query]:
        lines = _lines(text)
        first, header = next(lines, (1, ""))
        names = header.split("\t")
        missing = [column for column in columns if column not in names]
        if missing:
            raise ScenarioError(
                f"{path}:{first} must name the column `{missing[0]}`, got {', '.join(names) or 'nothing'};"
                " write the columns' names into the first line, a tab between them"
            )
        queries = []
        for number, line in lines:
            values = line.split("\t")
            if len(values) != len(names):
                raise ScenarioError(
                    f"{path}:{number} must have {len(names)} values as the first line has, got {len(values)};"
                    " put one tab between two values, and none into a value"
                )
            row = dict(zip(names, values, strict=True))
            queries.append({column: row[column] for column in columns})
        return queries

    return read


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yields the lines that hold something, with their numbers."""
    # Not splitlines(): it also breaks at characters that JSON allows within a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line
