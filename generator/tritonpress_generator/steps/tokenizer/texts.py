"""The texts of requests, as bytes: what can be served of them, and what cannot and why."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from .sequences import Sequences

# A request's few texts are tokenised in less time than it takes to wake other threads, which the engine needs anyway.
# (`tokenizers` reads it when it is imported.)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Column = Sequence[bytes]
"""One public input of a batch: a text an element."""


class InvalidTextError(ValueError):
    """A text that cannot be served; `index` is its place in its column, and `column` that of its column."""

    def __init__(self, index: int, message: str, *, column: int = 0) -> None:
        super().__init__(message)
        self.index = index
        self.column = column


def decode(texts: Column, max_bytes: int, *, column: int = 0) -> list[str]:
    """Returns `texts` as strings.

    Raises:
        InvalidTextError: A text is longer than `max_bytes`, not UTF-8, or without anything to read.
    """
    decoded = []
    for index, text in enumerate(texts):
        if len(text) > max_bytes:
            raise InvalidTextError(
                index, f"must be at most {max_bytes} bytes, got {len(text)}; send less", column=column
            )
        try:
            decoded.append(text.decode("utf-8"))
        except UnicodeDecodeError as exc:
            byte = f"byte 0x{text[exc.start]:02x} at {exc.start}"
            raise InvalidTextError(index, f"must be UTF-8, got {byte}; encode it as UTF-8", column=column) from exc
        if not decoded[-1].strip():
            raise no_text(index, column=column)
    return decoded


def no_text(index: int, *, column: int = 0) -> InvalidTextError:
    """Returns what refuses a text of which no token is left."""
    message = "must have text, got only white space or control characters; send some"
    return InvalidTextError(index, message, column=column)


def encode_requests(
    encode: Callable[..., Sequences], requests: Sequence[tuple[Column, ...]]
) -> tuple[Sequences, list[InvalidTextError | None]]:
    """Returns the sequences of all requests that can be served, and for each request what refuses it.

    All texts are encoded at once; a bad one refuses its own request alone.

    Args:
        encode: An encoder's, from columns to sequences.
        requests: The columns of each.
    """
    together = [[text for column in columns for text in column] for columns in zip(*requests, strict=True)]
    try:
        return encode(*together), [None] * len(requests)
    except InvalidTextError:
        pass
    parts: list[Sequences] = []
    refusals: list[InvalidTextError | None] = []
    for columns in requests:
        try:
            parts.append(encode(*columns))
            refusals.append(None)
        except InvalidTextError as error:
            refusals.append(error)
    return Sequences.concatenated(parts), refusals
