"""Turns public data sets into catalogues with labelled queries, beside a recipe that builds them.

    python -m tritonpress_generator.public_sets scifact|retail|movies DATA OUT

DATA is the folder with `retrieval/` and `catalogues/`; OUT gets `catalogue.jsonl`, `queries.jsonl` and `recipe.yaml`.

- scifact (Wadden et al. 2020): claims as queries, the abstracts that bear on them as relevant items.
- retail (UCI Online Retail) and movies (MovieTweetings 100K): each user's last item by date is held out, and is the one
  relevant item; the query is the titles of up to ten before it, one a line. A sample of the users, drawn by seed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tritonpress_generator.errors import InputError

_HISTORY = 10
_USERS = 500
_SEED = 0

Records = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def write(name: str, data: Path, out: Path, *, recipe: Path) -> Path:
    """Returns the path of a recipe that builds the set `name`.

    Args:
        name: `scifact`, `retail` or `movies`.
        data: The folder with the public files.
        out: Where the catalogue, the queries and the recipe are written.
        recipe: The recipe to start from; its name, catalogue and gate's data set are replaced. What it crops the
            vocabulary to has the words of the set's catalogue too. Its other files stay where they are.

    Raises:
        InputError: A file of the set is missing or otherwise than published.
    """
    try:
        items, queries = SETS[name](data)
    except (OSError, ValueError, KeyError) as exc:
        raise InputError(f"{name} in {data}: cannot be read ({exc!r}); give the folder with its files") from exc
    out.mkdir(parents=True, exist_ok=True)
    for file, records in (("catalogue.jsonl", items), ("queries.jsonl", queries)):
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (out / file).write_text(text, encoding="utf-8")
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    settings["name"] = name
    settings["task"]["recommendation"]["catalogue"] = "catalogue.jsonl"
    settings["gate"]["dataset"] = "queries.jsonl"
    folder = recipe.resolve().parent
    for stage in settings.get("passes", []):
        if restored := stage.get("restore"):
            restored["folder"] = str(folder / restored["folder"])
        if vocabulary := stage.get("crop", {}).get("vocabulary"):
            vocabulary["corpus"] = ["catalogue.jsonl", *(str(folder / file) for file in vocabulary.get("corpus", []))]
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def _scifact(data: Path) -> Records:
    folder = data / "retrieval"
    with gzip.open(folder / "scifact_corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        corpus = [json.loads(line) for line in file]
    items = [{"id": str(doc["_id"]), "title": doc["title"], "text": doc["text"]} for doc in corpus]
    claims = json.loads((folder / "scifact_train.json").read_text(encoding="utf-8"))
    queries = [
        {"query": text, "relevant": dict.fromkeys(map(str, claims["qrels"][number]), 1)}
        for number, text in claims["queries"].items()
    ]
    return items, queries


def _retail(data: Path) -> Records:
    folder = data / "catalogues"
    with (folder / "retail_products.tsv").open(encoding="utf-8", newline="") as file:
        items = [{"id": row["product_id"], "title": row["title"], "text": ""} for row in _tsv(file)]
    with gzip.open(folder / "retail_interactions.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        events = [(row["customer_id"], row["last_date"], row["product_id"]) for row in _tsv(file)]
    return items, _held_out(items, events)


def _movies(data: Path) -> Records:
    folder = data / "catalogues"
    with (folder / "movies.tsv").open(encoding="utf-8", newline="") as file:
        items = [
            {"id": row["movie_id"], "title": row["title"], "text": f"{row['year']}. {row['genres']}"}
            for row in _tsv(file)
        ]
    with gzip.open(folder / "ratings.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        events = [(row["user_id"], row["timestamp"], row["movie_id"]) for row in _tsv(file)]
    return items, _held_out(items, events)


def _held_out(items: list[dict[str, Any]], events: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Returns a query for each sampled user with at least three items: the earlier titles ask for the last item."""
    titles = {item["id"]: item["title"] for item in items}
    histories: dict[str, list[tuple[str, str]]] = {}
    for user, when, item in events:
        if item in titles:
            histories.setdefault(user, []).append((when, item))
    users = sorted(user for user, history in histories.items() if len(history) >= 3)
    queries = []
    for user in random.Random(_SEED).sample(users, min(_USERS, len(users))):
        *earlier, (_, last) = sorted(histories[user])
        seen = [item for _, item in earlier if titles[item] != titles[last]][-_HISTORY:]
        if len(seen) >= 2:
            queries.append({"query": "\n".join(titles[item] for item in seen), "relevant": {last: 1}})
    return queries


def _tsv(file: Any) -> csv.DictReader[str]:
    return csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


SETS: dict[str, Callable[[Path], Records]] = {"scifact": _scifact, "retail": _retail, "movies": _movies}


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="tritonpress_generator.public_sets")
    parser.add_argument("name", choices=sorted(SETS))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", type=Path, default=Path("generator/recipes/recommendation.yaml"))
    options = parser.parse_args(arguments)
    try:
        print(write(options.name, options.data, options.out, recipe=options.recipe))
    except InputError as exc:
        print(f"public_sets: {exc}", file=sys.stderr)
        return exc.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
