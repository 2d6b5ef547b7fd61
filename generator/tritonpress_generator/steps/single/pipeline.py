"""Sequences to the public answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]


class Pipeline:
    """The engine and the post-processing behind one another."""

    def __init__(
        self,
        executions: Callable[[Any], Iterable[tuple[list[int], Tensors]]],
        engine: Callable[[Iterable[Tensors]], Iterable[Tensors]],
        postprocessor: Callable[[Tensors, Tensors, Tensors], dict[str, NDArray[Any]]],
        *,
        of_tokens: Collection[str] = (),
    ) -> None:
        """Keeps the parts.

        Args:
            executions: Sequences to executions: which of them it holds, and the engine's inputs (`Batching`).
            engine: The inputs of each execution to its outputs, each of a row a sequence or a value a token.
            postprocessor: Outputs, where they lie, and public texts to the public answer.
            of_tokens: The outputs of a value a token: `(tokens,)`, or `(sequences, seq)` of a padded execution.
        """
        self._executions = executions
        self._engine = engine
        self._postprocessor = postprocessor
        self._of_tokens = of_tokens

    def __call__(self, sequences: Any, texts: Tensors) -> dict[str, NDArray[Any]]:
        """Returns the public answer, a row a text.

        Args:
            sequences: What the texts have become (`Sequences`).
            texts: The public inputs, bytes `(texts,)`.
        """
        pieces = sequences.pieces()
        return self._postprocessor(self.outputs(sequences, pieces["lengths"]), pieces, texts)

    def outputs(self, sequences: Any, lengths: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Returns the engine's outputs for all of `sequences`, in their order, those of tokens without padding."""
        outputs: dict[str, NDArray[Any]] = {}
        starts = np.cumsum(lengths) - lengths
        executions = list(self._executions(sequences))
        for (members, _), given in zip(executions, self._engine(feed for _, feed in executions), strict=True):
            own = lengths[members]
            for name, part in given.items():
                # An execution may hold any of the sequences: what comes back is put in their places.
                if name in self._of_tokens:
                    if part.ndim == 2:
                        part = part[np.arange(part.shape[1]) < own[:, None]]  # noqa: PLW2901
                    if name not in outputs:
                        outputs[name] = np.empty(lengths.sum(), part.dtype)
                    places = np.arange(len(part)) + np.repeat(starts[members] - (np.cumsum(own) - own), own)
                else:
                    if name not in outputs:
                        outputs[name] = np.empty((len(lengths), *part.shape[1:]), part.dtype)
                    places = np.asarray(members)
                outputs[name][places] = part
        return outputs
