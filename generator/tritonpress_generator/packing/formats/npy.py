"""The array of a NumPy file: behind a header, which names its type (numpy.org/doc/stable/reference, NEP 1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tritonpress_generator.packing.formats import Tensor

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}
"""By version: how long the header's length is."""
_HEADER_BYTES = 10_000
"""NumPy's own limit."""
_DESCRIPTION = re.compile(rb"'descr': *'([^']*)'")
_PRECISIONS = {b"<f4": "FP32", b"<f2": "FP16", b"|i1": "INT8", b"|u1": "INT8"}


def tensors(file: BinaryIO, path: Path) -> Iterator[Tensor]:
    """Yields the array.

    Raises:
        ValueError: It is no NumPy file.
    """
    size = file.seek(0, 2)
    file.seek(0)
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("begins otherwise")
    length_bytes = _LENGTH_BYTES.get(file.read(2))
    if length_bytes is None:
        raise ValueError("another version")
    length = int.from_bytes(file.read(length_bytes), "little")
    begin = file.tell() + length
    if length > _HEADER_BYTES or begin >= size:
        raise ValueError("the header goes beyond the file")
    description = _DESCRIPTION.search(file.read(length))
    yield Tensor(begin, size - begin, _PRECISIONS.get(description[1] if description else b"", "other"))
