"""Embeddings and queries to the items of a catalogue that are nearest, exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Catalogue:
    """The items' ids, titles and unit-length embeddings."""

    def __init__(self, ids: Sequence[str], titles: Sequence[str], embeddings: NDArray[np.float32], top_k: int) -> None:
        """Keeps the items.

        Args:
            ids: One an item.
            titles: One an item.
            embeddings: FP32 `(items, width)`, each of length 1.
            top_k: How many items an answer has, at most the number of items.
        """
        self.ids = np.array([item_id.encode() for item_id in ids], dtype=np.object_)
        self.titles = list(titles)
        self.embeddings = np.ascontiguousarray(embeddings)
        self.top_k = top_k
        self._by_title: dict[str, list[int]] = {}
        for index, title in enumerate(titles):
            if name := _normalized(title):  # an item may have none, and a query blank lines
                self._by_title.setdefault(name, []).append(index)

    @classmethod
    def from_folder(cls, folder: Path) -> Catalogue:
        """Returns the catalogue that `items.json` and `embeddings.npy` in `folder` describe."""
        items = json.loads((folder / "items.json").read_text(encoding="utf-8"))
        embeddings = np.load(folder / "embeddings.npy", allow_pickle=False)
        return cls(items["ids"], items["titles"], embeddings, items["top_k"])

    def save(self, folder: Path) -> None:
        """Writes `items.json` and `embeddings.npy` into `folder`."""
        items = {"ids": [item_id.decode() for item_id in self.ids], "titles": self.titles, "top_k": self.top_k}
        (folder / "items.json").write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
        np.save(folder / "embeddings.npy", self.embeddings, allow_pickle=False)

    def rank(self, embedding: NDArray[np.float32], query: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns the indices and cosine similarities of the `top_k` nearest items, best first, ties by index.

        A query of several lines is a list of titles that a customer has seen: those items are not recommended again.
        Each query is multiplied on its own, since a product of several rounds differently and could order a near tie
        otherwise.

        Args:
            embedding: FP32 `(width,)`, of length 1.
            query: The text that the embedding stands for.
        """
        # einsum stays on this thread: BLAS would wake others, which fight the engine for the cores.
        scores: NDArray[np.float32] = np.einsum("ij,j->i", self.embeddings, embedding)
        ranked = scores
        seen = self._seen(query)
        if seen:
            ranked = scores.copy()
            ranked[seen] = -np.inf
        border = np.partition(ranked, ranked.size - self.top_k)[ranked.size - self.top_k]
        # A tie at the border would make the choice arbitrary: take all of the last score, then order by index.
        candidates = np.flatnonzero(ranked >= border)
        top = candidates[np.argsort(-ranked[candidates], kind="stable")][: self.top_k]
        return top, scores[top]

    def _seen(self, query: str) -> list[int]:
        lines = query.splitlines()
        if len(lines) < 2:
            return []
        seen = list(dict.fromkeys(index for line in lines for index in self._by_title.get(_normalized(line), [])))
        # An answer always has `top_k` items.
        return seen[: max(0, self.ids.size - self.top_k)]


class Postprocessor:
    """Ranks the catalogue for every query."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Keeps the catalogue."""
        self._catalogue = catalogue

    @classmethod
    def from_folder(cls, folder: Path) -> Postprocessor:
        """Returns the post-processing of the catalogue in `folder`."""
        return cls(Catalogue.from_folder(folder))

    def save(self, folder: Path) -> None:
        """Writes the catalogue into `folder`."""
        self._catalogue.save(folder)

    def __call__(
        self,
        outputs: Mapping[str, NDArray[Any]],
        pieces: Mapping[str, NDArray[Any]],
        texts: Mapping[str, NDArray[Any]],
    ) -> dict[str, NDArray[Any]]:
        """Returns `ITEM_ID`, bytes `(queries, top_k)`, and `SCORE`, FP32 of the same shape.

        Args:
            outputs: `embedding`, FP32 `(queries, width)`.
            pieces: Not read: a query is one sequence.
            texts: `QUERY`, UTF-8 bytes `(queries,)`.
        """
        queries = texts["QUERY"]
        ids = np.empty((len(queries), self._catalogue.top_k), np.object_)
        scores = np.empty(ids.shape, np.float32)
        for row, query in enumerate(queries):
            top, scores[row] = self._catalogue.rank(outputs["embedding"][row], query.decode("utf-8"))
            ids[row] = self._catalogue.ids[top]
        return {"ITEM_ID": ids, "SCORE": scores}


def _normalized(title: str) -> str:
    return " ".join(title.casefold().split())
