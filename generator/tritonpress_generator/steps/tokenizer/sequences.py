"""Sequences of token ids, and the executions of the engine that answer them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sequences:
    """What texts have become, in their order; a text has one sequence, or one a window."""

    ids: list[list[int]]
    """Token ids, special tokens included."""
    counts: list[int]
    """How many sequences each text has."""
    segments: list[list[int]] = field(default_factory=list)
    """Segment ids beside the token ids; none where the model reads none."""
    spans: list[NDArray[np.int32]] = field(default_factory=list)
    """`(tokens, 2)` a sequence: where in the text each token begins and ends, in characters, -1 for tokens of another
    text; none where nobody asks."""

    @classmethod
    def concatenated(cls, parts: Sequence[Sequences]) -> Sequences:
        """Returns the sequences of all of `parts`, behind one another."""
        columns = ("ids", "counts", "segments", "spans")
        return cls(**{name: [entry for part in parts for entry in getattr(part, name)] for name in columns})

    def of_texts(self, start: int, stop: int) -> Sequences:
        """Returns those of the texts from `start` to before `stop`."""
        first = sum(self.counts[:start])
        part = slice(first, first + sum(self.counts[start:stop]))
        return Sequences(self.ids[part], self.counts[start:stop], self.segments[part], self.spans[part])

    def chosen(self, indices: Sequence[int]) -> Sequences:
        """Returns the sequences at `indices`, each as of a text of its own."""
        return Sequences(
            [self.ids[i] for i in indices],
            [1] * len(indices),
            [self.segments[i] for i in indices] if self.segments else [],
            [self.spans[i] for i in indices] if self.spans else [],
        )

    def pieces(self) -> dict[str, NDArray[Any]]:
        """Returns where the texts lie: `lengths` of the sequences and `counts` of the texts' sequences, INT64, and, if
        there are any, `spans`, INT32 `(tokens, 2)`.
        """
        lengths = np.array([len(row) for row in self.ids], np.int64)
        pieces = {"lengths": lengths, "counts": np.array(self.counts, np.int64)}
        return pieces | {"spans": np.concatenate(self.spans)} if self.spans else pieces

    def __len__(self) -> int:
        return len(self.ids)


class TooManyTokensError(ValueError):
    """A request of more than its share of an execution; `text` is the place of the one that is too much."""

    def __init__(self, text: int, message: str) -> None:
        super().__init__(message)
        self.text = text


class Batching:
    """How sequences share the executions of an engine."""

    def __init__(
        self,
        *,
        pad_id: int,
        max_sequences: int = 32,
        borders: Sequence[int] = (),
        packed: bool = False,
        max_tokens: int | None = None,
        integers: str = "int64",
    ) -> None:
        """Keeps the limits.

        Args:
            pad_id: The token of padding.
            max_sequences: The most sequences of a padded execution.
            borders: Lengths to the next of which a batch is padded, ascending; none: to its longest.
            packed: Whether the engine takes the sequences' tokens behind one another, without padding.
            max_tokens: The most packed tokens of one request or execution.
            integers: The type of the engine's inputs.
        """
        self._pad_id = pad_id
        self._max_sequences = max_sequences
        self._borders = borders
        self._packs = packed
        self._max_tokens = max_tokens
        self._type = np.dtype(integers)

    def executions(self, sequences: Sequences) -> Iterator[tuple[list[int], dict[str, NDArray[Any]]]]:
        """Yields executions that answer all of `sequences` between them: which of them, and the engine's inputs.

        Packed, an execution has as many sequences as its tokens allow. Padded, those of one border; without borders,
        those of one length.
        """
        parts: dict[int, list[list[int]]] = {}
        tokens = 0
        for index, row in enumerate(sequences.ids):
            if not self._packs:
                same = parts.setdefault(self._width(len(row)), [[]])
                full = len(same[-1]) == self._max_sequences
            else:
                same = parts.setdefault(0, [[]])
                tokens += len(row)
                full = self._max_tokens is not None and tokens > self._max_tokens
            if full and same[-1]:
                same.append([])
                tokens = len(row)
            same[-1].append(index)
        for members in (part for same in parts.values() for part in same):
            chosen = sequences.chosen(members)
            if self._packs:
                yield members, {name: tensor[0] for name, tensor in self._packed(chosen).items()}
            else:
                yield members, self.pad(chosen)

    def tensors(self, sequences: Sequences) -> dict[str, NDArray[Any]]:
        """Returns the engine's inputs for the sequences of one request, with Triton's batch dimension first.

        Raises:
            TooManyTokensError: They are too many together.
        """
        if not self._packs:
            return self.pad(sequences)
        total = 0
        for text, row in enumerate(sequences.ids):
            total += len(row)
            if self._max_tokens is not None and total > self._max_tokens:
                raise TooManyTokensError(
                    text, f"must keep the request within {self._max_tokens} tokens, makes it {total}; send fewer texts"
                )
        return self._packed(sequences)

    def pad(self, sequences: Sequences) -> dict[str, NDArray[Any]]:
        """Returns `input_ids`, `attention_mask` and, where there are segments, `token_type_ids`.

        All are `(sequences, seq)`, padded on the right.
        """
        width = self._width(max(map(len, sequences.ids)))
        lengths = np.array([len(row) for row in sequences.ids])
        mask = np.arange(width) < lengths[:, None]
        input_ids = np.full(mask.shape, self._pad_id, self._type)
        input_ids[mask] = _flat(sequences.ids)
        tensors = {"input_ids": input_ids, "attention_mask": mask.astype(self._type)}
        if sequences.segments:
            tensors["token_type_ids"] = np.zeros(mask.shape, self._type)
            tensors["token_type_ids"][mask] = _flat(sequences.segments)
        return tensors

    def _packed(self, sequences: Sequences) -> dict[str, NDArray[Any]]:
        tensors = {
            "input_ids": _flat(sequences.ids)[None].astype(self._type, copy=False),
            "lengths": np.array([[len(row) for row in sequences.ids]], self._type),
        }
        if sequences.segments:
            tensors["token_type_ids"] = _flat(sequences.segments)[None].astype(self._type, copy=False)
        return tensors

    def _width(self, length: int) -> int:
        return next((border for border in self._borders if border >= length), length)


def _flat(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.array([value for row in rows for value in row], np.int64)
