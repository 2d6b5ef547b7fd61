"""Token ids to the public answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]


class Pipeline:
    """The engine and the post-processing behind one another."""

    def __init__(
        self,
        executions: Callable[[Sequence[Sequence[int]]], Iterable[tuple[list[int], Tensors]]],
        engine: Callable[[Tensors], Tensors],
        postprocessor: Callable[[Tensors, Tensors], dict[str, NDArray[Any]]],
    ) -> None:
        """Keeps the parts.

        Args:
            executions: Token ids to executions: which of them it holds, and the engine's inputs (`TextEncoder`).
            engine: Inputs to a row of each output for each sequence.
            postprocessor: Rows and public texts to the public answer.
        """
        self._executions = executions
        self._engine = engine
        self._postprocessor = postprocessor

    def __call__(self, ids: Sequence[Sequence[int]], texts: Tensors) -> dict[str, NDArray[Any]]:
        """Returns the public answer, a row a text.

        Args:
            ids: Token ids of each text.
            texts: The public inputs, bytes `(texts,)`.
        """
        rows: dict[str, NDArray[Any]] = {}
        for members, feed in self._executions(ids):
            for name, part in self._engine(feed).items():
                # An execution may hold any of the texts: what comes back is put in their places.
                if name not in rows:
                    rows[name] = np.empty((len(ids), *part.shape[1:]), part.dtype)
                rows[name][members] = part
        return self._postprocessor(rows, texts)
