"""Files whose tensors are found by their format: one file each, named after the suffix.

`tensors(file, path)` yields a `Tensor` for each that it finds, in any order. What it says is a hint: it decides how
bytes are coded, and never which. A file that is not what its suffix says is refused with `ValueError`, at any time.
"""

from __future__ import annotations

from dataclasses import dataclass

WORD_BYTES = {"FP32": 4, "FP16": 2, "BF16": 2, "FP8": 1, "INT8": 1, "other": 1}
"""Precisions, and the bytes of their words; `other` is all that is none of them."""


@dataclass(frozen=True)
class Tensor:
    """Bytes of one precision."""

    offset: int
    """From the beginning of the file, in bytes."""
    bytes: int
    precision: str
