"""Recommendations from the ensemble that a `recommendation` recipe builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType

import numpy as np

from tritonpress_client.connection import Connection
from tritonpress_client.errors import InvalidInputError
from tritonpress_client.metadata import ModelMetadata

_OUTPUTS = ("ITEM_ID", "SCORE")


@dataclass(frozen=True)
class Recommendation:
    """An item of the catalogue and how well it matches the query; a higher score is a better match."""

    item_id: str
    score: float


class Recommender:
    """Asks a recommendation model; a context manager, safe to share between threads.

    Args:
        url: `HOST:PORT` of Triton's gRPC endpoint.
        model: The name of the ensemble.
        timeout_s: The deadline of each request in seconds.

    Raises:
        InvalidInputError: `url` or `timeout_s` is out of range.
    """

    def __init__(self, url: str, *, model: str = "recommendation", timeout_s: float = 5.0) -> None:
        self.model = model
        self._connection = Connection(url, timeout_s=timeout_s)

    def __enter__(self) -> Recommender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    @property
    def top_k(self) -> int:
        """The most items that the model recommends for a query (asks the server once)."""
        return self._metadata.outputs["ITEM_ID"].shape[-1]

    @property
    def max_batch_size(self) -> int:
        """The most queries in one request (asks the server once)."""
        return max(1, self._metadata.max_batch_size)

    def recommend(self, query: str, k: int | None = None) -> list[Recommendation]:
        """Returns the items that match the query, best first.

        Args:
            query: What the user looks for, or the titles they have seen, one a line.
            k: How many items, 1 to `top_k`; all `top_k` by default.

        Raises:
            InvalidInputError: The query holds no text or cannot be encoded, `k` is out of range, or the server refuses.
            TritonpressError: See `tritonpress_client.errors`.
        """
        return self._request([_encoded(query, "query")], self._checked_k(k))[0]

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
        if isinstance(queries, str | bytes) or not isinstance(queries, Sequence):
            raise InvalidInputError(f"`queries` must be a list of str, got {type(queries).__name__}")
        if not queries:
            raise InvalidInputError("`queries` is empty; give at least one query")
        encoded = [_encoded(query, f"queries[{index}]") for index, query in enumerate(queries)]
        k = self._checked_k(k)
        answers: list[list[Recommendation]] = []
        for start in range(0, len(encoded), self.max_batch_size):
            batch = encoded[start : start + self.max_batch_size]
            try:
                answers += self._request(batch, k)
            except InvalidInputError as exc:
                if len(batch) == len(encoded):
                    raise
                # The server counts from the batch's first query.
                message = f"in queries[{start}:{start + len(batch)}], counted from {start}: {exc}"
                raise InvalidInputError(message, target=exc.target, model=exc.model) from exc
        return answers

    def _request(self, queries: list[bytes], k: int) -> list[list[Recommendation]]:
        column = np.array(queries, dtype=object).reshape(-1, 1)  # (batch, 1) BYTES
        answer = self._connection.infer(self.model, {"QUERY": column}, _OUTPUTS)
        rows = zip(answer["ITEM_ID"][:, :k].tolist(), answer["SCORE"][:, :k].tolist(), strict=True)  # (batch, k) each
        return [
            [Recommendation(item.decode(), score) for item, score in zip(items, scores, strict=True)]
            for items, scores in rows
        ]

    def _checked_k(self, k: int | None) -> int:
        if k is None:
            return self.top_k
        # True is an int to Python; nobody means it.
        if not isinstance(k, int | np.integer) or isinstance(k, bool) or not 1 <= k <= self.top_k:
            message = f"`k` must be an integer in 1..{self.top_k} (`top_k` of model {self.model!r}), got {k!r}"
            raise InvalidInputError(message, target=self._connection.url, model=self.model)
        return int(k)

    @cached_property
    def _metadata(self) -> ModelMetadata:
        metadata = self._connection.model_metadata(self.model)
        if "QUERY" not in metadata.inputs or not set(_OUTPUTS) <= set(metadata.outputs):
            message = (
                f"model {self.model!r} at {self._connection.url} does not recommend: it takes"
                f" {', '.join(metadata.inputs)} and gives {', '.join(metadata.outputs)};"
                " name a model with QUERY, ITEM_ID and SCORE"
            )
            raise InvalidInputError(message, target=self._connection.url, model=self.model)
        return metadata


def _encoded(query: str, name: str) -> bytes:
    """Returns the query in UTF-8, or refuses what no server could answer."""
    if not isinstance(query, str):
        raise InvalidInputError(f"`{name}` must be a str, got {type(query).__name__}")
    if not query.strip():
        raise InvalidInputError(f"`{name}` is empty; give it some text")
    try:
        return query.encode()
    except UnicodeEncodeError as exc:
        message = f"`{name}` cannot be encoded as UTF-8 ({exc.reason} at character {exc.start}); replace that character"
        raise InvalidInputError(message) from exc
