"""Recommendations from the ensemble that a `recommendation` recipe builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritonpress_client.many import Progress
from tritonpress_client.model_client import Contract, ModelClient, Row, checked_list, encoded
from tritonpress_client.modes import Asynchronous, Blocking, both


@dataclass(frozen=True)
class Recommendation:
    """An item of the catalogue and how well it matches the query; a higher score is a better match."""

    item_id: str
    score: float


class _Recommender(ModelClient):
    _contract = Contract("recommendation", inputs=("QUERY",), outputs=("ITEM_ID", "SCORE"), width="top_k")

    @both
    async def recommend(self, query: str, k: int | None = None) -> list[Recommendation]:
        """Returns the items that match the query, best first.

        Args:
            query: What the user looks for, or the titles they have seen, one a line.
            k: How many items, 1 to `top_k`; all `top_k` by default.

        Raises:
            InvalidInputError: The query holds no text or cannot be encoded, `k` is out of range, or the server refuses.
            TritonpressError: See `tritonpress_client.errors`.
        """
        return _items(await self._one((encoded(query, "query"),), k, "k"))

    @both
    async def recommend_many(
        self, queries: Sequence[str], k: int | None = None, *, progress: Progress | None = None
    ) -> list[list[Recommendation]]:
        """Returns the items for each query, in the queries' order.

        The queries travel in batches that the model takes, each a request with a deadline of its own.

        Args:
            queries: At least one query, each as for `recommend`.
            k: As for `recommend`.
            progress: Told how many queries are done, and of how many.

        Raises:
            InvalidInputError: A query or `k` is at fault; nothing is sent if that can be seen here.
            PartialFailureError: Some queries have failed; it has the others' items.
            TritonpressError: See `tritonpress_client.errors`.
        """
        listed = enumerate(checked_list(queries, "queries", of="str"))
        elements = [(encoded(query, f"queries[{index}]"),) for index, query in listed]
        return await self._many(elements, k, ("queries", "k"), _items, progress)


class Recommender(_Recommender, Blocking):
    """Asks a recommendation model; arguments and errors as `ModelClient`."""


class AsyncRecommender(_Recommender, Asynchronous):
    """The same, awaited."""


def _items(row: Row) -> list[Recommendation]:
    return [Recommendation(item.decode(), score) for item, score in zip(*row, strict=True)]
