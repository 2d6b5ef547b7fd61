"""What a task's model reads and gives, and how much of it: all that the two forms of the export must know of a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

INPUTS = ("input_ids", "attention_mask")
"""What every model reads in the padded form, INT64 `(batch, seq)`, padded on the right."""
SEGMENTS = "token_type_ids"
"""What a model of pairs reads too, INT64 of the shape of `input_ids`: which of the two texts a token is of."""


@dataclass(frozen=True)
class Output:
    """A model's answer, FP32: `width` values a sequence, or one value a token."""

    width: int | None
    """Padded `(batch, width)`, ragged `(sequences, width)`; None: one value a token, padded `(batch, seq)`, of which
    what stands at padding means nothing, ragged `(tokens,)`."""

    @classmethod
    def per_token(cls) -> Output:
        """Returns the output of one value a token."""
        return cls(width=None)


@dataclass(frozen=True)
class Signature:
    """What a task's model gives, and whether it reads segment ids."""

    outputs: Mapping[str, Output]
    """By name, in the order in which the model gives them."""
    segments: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of what the model reads in the padded form, in its order."""
        return (*INPUTS, SEGMENTS) if self.segments else INPUTS

    @property
    def of_tokens(self) -> list[str]:
        """The names of the outputs of a value a token."""
        return [name for name, output in self.outputs.items() if output.width is None]
