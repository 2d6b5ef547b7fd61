"""`tritonpress-query recommend`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonpress_client.recommender import Recommendation, Recommender
from tritonpress_client.request_files import read_entries, texts

HELP = "the items that match a query"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument("text", nargs="*", metavar="TEXT", help="what the user looks for, or titles seen, one a line")
    parser.add_argument("--file", type=Path, help='queries, one a line; *.jsonl: one {"query": …} a line')
    parser.add_argument("-k", type=int, help="how many items (all that the model gives)")
    parser.add_argument("--model", default="recommendation", help="name of the ensemble (%(default)s)")
    parser.add_argument("--catalogue", type=Path, help="JSONL with id and title, to print titles")


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 after printing the items for each query."""
    queries = texts(arguments.text, arguments.file, key="query")
    titles = _read_titles(arguments.catalogue) if arguments.catalogue else {}
    with Recommender(arguments.url, model=arguments.model, timeout_s=arguments.timeout_s) as recommender:
        answers = recommender.recommend_many(queries, arguments.k)
    for query, items in zip(queries, answers, strict=True):
        if arguments.json:
            print(json.dumps({"query": query, "items": [_as_dict(item, titles) for item in items]}, ensure_ascii=False))
        else:
            print("\n".join(_lines(query, items, titles)))
    return 0


def _as_dict(item: Recommendation, titles: dict[str, str]) -> dict[str, Any]:
    title = {"title": titles[item.item_id]} if item.item_id in titles else {}
    return {"item_id": item.item_id, "score": item.score, **title}


def _lines(query: str, items: list[Recommendation], titles: dict[str, str]) -> Iterator[str]:
    """Yields the query and its items, a line each: rank, score, id, title."""
    yield " / ".join(query.splitlines())
    rank_width, id_width = len(str(len(items))), max(len(item.item_id) for item in items)
    for rank, item in enumerate(items, start=1):
        row = f"  {rank:>{rank_width}}  {item.score:8.4f}  {item.item_id:<{id_width}}  {titles.get(item.item_id, '')}"
        yield row.rstrip()


def _read_titles(path: Path) -> dict[str, str]:
    """Returns the catalogue's titles by id."""
    return {entry["id"]: entry["title"] for entry in read_entries(path, "id", "title")}
