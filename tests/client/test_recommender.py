"""Recommendations: order, batches, bounds, and input that is refused here or by the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tritonpress_client import (
    DeadlineExceededError,
    InvalidInputError,
    ModelUnavailableError,
    PartialFailureError,
    Recommendation,
    Recommender,
    ServerUnreachableError,
    TritonpressError,
)
from tritonpress_server import TritonServer

QUERIES = ["red lamp", "a small chair for the garden", "knife", "blue", "the old book\nthe new book", "shoe", "bowl"]


def ids(items: Sequence[Recommendation]) -> list[str]:
    """Returns the items' ids in order."""
    return [item.item_id for item in items]


def test_the_best_comes_first(recommender: Recommender) -> None:
    items = recommender.recommend("red lamp")
    assert len(items) == recommender.limits().answers == 10
    scores = [item.score for item in items]
    assert scores == sorted(scores, reverse=True)
    assert len(set(ids(items))) == 10
    assert all(item.item_id.startswith("T-") for item in items)
    assert isinstance(items[0].score, float)


def test_fewer_are_the_first_of_all(recommender: Recommender) -> None:
    assert recommender.recommend("red lamp", 3) == recommender.recommend("red lamp")[:3]
    assert recommender.recommend("red lamp", np.int64(1)) == recommender.recommend("red lamp", 1)  # type: ignore[arg-type]


def test_many_are_as_one_by_one_in_order(recommender: Recommender) -> None:
    queries = [f"{query} {number}" for number in range(3) for query in QUERIES]
    assert len(queries) > 2 * recommender.limits().max_batch_size
    singly = [ids(recommender.recommend(query, 5)) for query in queries]
    assert [ids(items) for items in recommender.recommend_many(queries, 5)] == singly
    assert [ids(items) for items in recommender.recommend_many(tuple(queries[:1]), 5)] == singly[:1]


def test_recommendations_are_values() -> None:
    assert Recommendation("T-001", 0.5) == Recommendation("T-001", 0.5)
    with pytest.raises(AttributeError):
        Recommendation("T-001", 0.5).score = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("k", [0, -1, 11, 1.5, "3", True])
def test_k_out_of_range_names_the_range(recommender: Recommender, k: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"`k` must be an integer in 1\.\.10 .*, got {k!r}"):
        recommender.recommend("red lamp", k)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "`query` is empty"),
        (" \n\t", "`query` is empty"),
        ("\ud800", "`query` cannot be encoded as UTF-8"),
        (b"red lamp", "`query` must be a str, got bytes"),
        (None, "`query` must be a str, got NoneType"),
    ],
)
def test_bad_queries_are_refused_before_they_are_sent(query: Any, words: str, unreachable_url: str) -> None:
    with Recommender(unreachable_url) as recommender, pytest.raises(InvalidInputError, match=words):
        recommender.recommend(query, 1)


@pytest.mark.parametrize("query", ["\x00\x07", "lamp " * 200_000], ids=["control characters", "1 MB"])
def test_what_only_the_server_can_judge_is_refused_by_it(recommender: Recommender, query: str) -> None:
    with pytest.raises(InvalidInputError, match="Triton says: ") as caught:
        recommender.recommend(query)
    message = str(caught.value)
    assert "'recommendation'" in message
    assert len(message) < 500
    assert "\n" not in message
    assert recommender.recommend("red lamp")


def test_a_bad_query_among_many_is_found(recommender: Recommender, unreachable_url: str) -> None:
    with Recommender(unreachable_url) as nowhere, pytest.raises(InvalidInputError, match=r"`queries\[1\]` is empty"):
        nowhere.recommend_many(["red lamp", ""])
    with pytest.raises(PartialFailureError, match=r"1 of 10 queries failed \(9\).*`queries\[9\]`: "):
        recommender.recommend_many(["red lamp"] * 9 + ["\x00\x07"])


@pytest.mark.parametrize(
    ("queries", "words"),
    [
        ("red lamp", "must be a list of str, got str"),
        (None, "must be a list of str, got NoneType"),
        ([], "is empty"),
        ([3], r"`queries\[0\]` must be a str, got int"),
    ],
)
def test_bad_lists_are_refused(recommender: Recommender, queries: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        recommender.recommend_many(queries)


def test_a_missing_model_and_a_model_of_another_task(recommender: Recommender, tiny_server: TritonServer) -> None:
    with (
        Recommender(tiny_server.grpc_url, model="nothing") as other,
        pytest.raises(ModelUnavailableError, match="nothing"),
    ):
        other.recommend("red lamp")
    step = next(name for name in _models(tiny_server.grpc_url) if name != "recommendation")
    with Recommender(tiny_server.grpc_url, model=step) as other, pytest.raises(TritonpressError, match=step):
        other.recommend("red lamp")


def _models(url: str) -> list[str]:
    from tritonpress_client import Connection

    with Connection(url) as connection:
        return [model.name for model in connection.models()]


def test_an_unreachable_server(unreachable_url: str) -> None:
    with Recommender(unreachable_url) as recommender, pytest.raises(ServerUnreachableError, match=unreachable_url):
        recommender.recommend("red lamp")


def test_a_deadline_that_is_too_short(tiny_server: TritonServer) -> None:
    with Recommender(tiny_server.grpc_url, timeout_s=1e-4) as hasty, pytest.raises(DeadlineExceededError):
        hasty.recommend("red lamp")
