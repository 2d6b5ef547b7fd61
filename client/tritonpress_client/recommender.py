"""Recommendations from the ensemble that a `recommendation` recipe builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritonpress_client.model_client import Contract, ModelClient, checked_list, encoded


@dataclass(frozen=True)
class Recommendation:
    """An item of the catalogue and how well it matches the query; a higher score is a better match."""

    item_id: str
    score: float


class Recommender(ModelClient):
    """Asks a recommendation model; arguments and errors as `ModelClient`."""

    _contract = Contract("recommendation", inputs=("QUERY",), outputs=("ITEM_ID", "SCORE"), width="top_k")

    @property
    def top_k(self) -> int:
        """The most items that the model recommends for a query (asks the server once)."""
        return self._width

    def recommend(self, query: str, k: int | None = None) -> list[Recommendation]:
        """Returns the items that match the query, best first.

        Args:
            query: What the user looks for, or the titles they have seen, one a line.
            k: How many items, 1 to `top_k`; all `top_k` by default.

        Raises:
            InvalidInputError: The query holds no text or cannot be encoded, `k` is out of range, or the server refuses.
            TritonpressError: See `tritonpress_client.errors`.
        """
        return self._recommend([(encoded(query, "query"),)], k)[0]

    def recommend_many(self, queries: Sequence[str], k: int | None = None) -> list[list[Recommendation]]:
        """Returns the items for each query, in the queries' order.

        The queries travel in batches of `max_batch_size`, each a request with a deadline of its own. One query that the
        server refuses fails the call; the message says where it stands.

        Args:
            queries: At least one query, each as for `recommend`.
            k: As for `recommend`.

        Raises:
            InvalidInputError: A query or `k` is at fault; nothing is sent if that can be seen here.
            TritonpressError: See `tritonpress_client.errors`.
        """
        listed = enumerate(checked_list(queries, "queries", of="str"))
        return self._recommend([(encoded(query, f"queries[{index}]"),) for index, query in listed], k)

    def _recommend(self, queries: list[tuple[bytes, ...]], k: int | None) -> list[list[Recommendation]]:
        rows = self._infer(queries, self._checked_count("k", k), "queries")
        return [
            [Recommendation(item.decode(), score) for item, score in zip(items, scores, strict=True)]
            for items, scores in rows
        ]
