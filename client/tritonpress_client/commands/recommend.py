"""`tritonpress-query recommend`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonpress_client.connecting import connected
from tritonpress_client.file_run import Asked, answer_all, check_arguments
from tritonpress_client.recommender import Recommendation, Recommender
from tritonpress_client.request_files import read_requests, requests

HELP = "the items that match a query"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument("text", nargs="*", metavar="TEXT", help="what the user looks for, or titles seen, one a line")
    parser.add_argument("--file", type=Path, help='queries, one a line; *.jsonl or *.csv with "query"')
    parser.add_argument("--out", type=Path, help="items for --file, *.jsonl or *.csv; what is there is not asked again")
    parser.add_argument("-k", type=int, help="how many items (all that the model gives)")
    parser.add_argument("--model", default="recommendation", help="name of the ensemble (%(default)s)")
    parser.add_argument("--catalogue", type=Path, help="JSONL with id and title, to print titles")


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status after printing the items for each query."""
    check_arguments(arguments)
    asked = requests(arguments.text, arguments.file, key="query")
    titles = _read_titles(arguments.catalogue) if arguments.catalogue else {}
    with connected(Recommender, arguments) as recommender:
        how = Asked(
            keys=("query",),
            name="items",
            columns=("item_id", "score", "title"),
            ask=lambda chunk, progress: recommender.recommend_many(
                [request.texts["query"] for request in chunk], arguments.k, progress=progress
            ),
            value=lambda item: _as_dict(item, titles),
            lines=lambda request, items: _lines(request.texts["query"], items, titles),
        )
        return answer_all(how, asked, arguments, lambda: recommender.limits().max_batch_size)


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
    return {request.texts["id"]: request.texts["title"] for request in read_requests(path, "id", "title")}
