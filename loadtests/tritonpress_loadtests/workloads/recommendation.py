"""Recommendation: a query a request, all `top_k` items back."""

from __future__ import annotations

from tritonpress_client import Options, Recommender

from tritonpress_loadtests.query_files import jsonl

READERS = {".jsonl": jsonl("query")}
INPUTS = {"QUERY": "query"}
OUTPUTS = ("ITEM_ID", "SCORE")


def connect(url: str, *, model: str, timeout_s: float, options: Options) -> Recommender:
    """Returns a client of the model; nothing is sent yet."""
    return Recommender(url, model=model, timeout_s=timeout_s, options=options)


def check(client: Recommender) -> None:
    """Asks the server whether the model recommends; the client remembers the answer."""
    client.limits()
