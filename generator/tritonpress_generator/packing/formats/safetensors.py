"""Tensors of a safetensors file: its header says where they are (huggingface.co/docs/safetensors)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tritonpress_generator.packing.formats import Tensor

_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_PRECISIONS = {
    "F32": "FP32",
    "F16": "FP16",
    "BF16": "BF16",
    "F8_E4M3": "FP8",
    "F8_E5M2": "FP8",
    "I8": "INT8",
    "U8": "INT8",
}


def tensors(file: BinaryIO, path: Path) -> Iterator[Tensor]:
    """Yields the tensors that the header names.

    Raises:
        ValueError: It has no such header.
    """
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(_HEADER_BYTES, size - 8):
        raise ValueError("the header goes beyond the file")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = map(int, entry["data_offsets"])
            precision = _PRECISIONS.get(entry["dtype"], "other")
        except (KeyError, TypeError, OverflowError) as exc:
            raise ValueError(f"the entry of {name!r} is no tensor's") from exc
        if end > begin:
            yield Tensor(8 + length + begin, end - begin, precision)
