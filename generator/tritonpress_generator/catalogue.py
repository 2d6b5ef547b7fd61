"""Reads a catalogue and its labelled queries, and refuses what could not be served."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonpress_generator.errors import InputError
from tritonpress_generator.records import records


@dataclass(frozen=True)
class Item:
    """What can be recommended."""

    item_id: str
    title: str
    text: str


@dataclass(frozen=True)
class LabelledQuery:
    """A query, and the grade (above 0) of each item that answers it."""

    query: str
    relevant: Mapping[str, float]


def load_items(path: Path) -> list[Item]:
    """Returns the items of a JSONL or CSV file with the fields `id`, `title` and `text`; further fields are ignored.

    Raises:
        InputError: Unreadable, not UTF-8, a field missing, an id twice, an item without title and text.
    """
    items: list[Item] = []
    lines: dict[str, int] = {}
    for number, record in records(path):
        fields = {}
        for key in ("id", "title", "text"):
            value = record.get(key)
            if not isinstance(value, str):
                raise InputError(
                    f"{path}:{number}: {key!r} must be a string, got {value!r}; every item has id, title, text"
                )
            fields[key] = value.strip()
        item_id = fields["id"]
        if not item_id:
            raise InputError(f"{path}:{number}: 'id' must not be empty; give every item one")
        if item_id in lines:
            raise InputError(
                f"{path}:{number}: id {item_id!r} must be unique, is also in line {lines[item_id]}; rename one"
            )
        if not fields["title"] and not fields["text"]:
            raise InputError(f"{path}:{number}: item {item_id!r} must have a title or a text, got neither; add one")
        lines[item_id] = number
        items.append(Item(item_id, fields["title"], fields["text"]))
    if not items:
        raise InputError(f"{path}: must have at least one item, got none")
    return items


def load_queries(path: Path, known: set[str], *, labelled: bool = True) -> list[LabelledQuery]:
    """Returns the labelled queries of a JSONL file: `{"query": …, "relevant": {id: grade}}` a line.

    Where they need not be `labelled`, a query may have no `relevant`.

    Raises:
        InputError: Unreadable, an empty query, no relevant item, an item that is not in the catalogue, a grade below 0.
    """
    queries: list[LabelledQuery] = []
    for number, record in records(path):
        query, relevant = record.get("query"), record.get("relevant", None if labelled else {})
        if not isinstance(query, str) or not query.strip():
            raise InputError(f"{path}:{number}: 'query' must be a text, got {query!r}")
        if not isinstance(relevant, dict) or (labelled and not relevant):
            raise InputError(
                f"{path}:{number}: 'relevant' must map at least one item id to its grade, got {relevant!r}"
            )
        for item_id, grade in relevant.items():
            if item_id not in known:
                raise InputError(f"{path}:{number}: relevant item {item_id!r} is not in the catalogue; correct the id")
            if isinstance(grade, bool) or not isinstance(grade, int | float) or not 0 < grade < math.inf:
                raise InputError(f"{path}:{number}: the grade of {item_id!r} must be finite and above 0, got {grade!r}")
        queries.append(LabelledQuery(query, {item_id: float(grade) for item_id, grade in relevant.items()}))
    if not queries:
        raise InputError(f"{path}: must have at least one query, got none")
    return queries
