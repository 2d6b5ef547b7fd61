"""Cuts a file into tensors and what lies between them: by its format or, where none is known, by its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from tritonpress_generator.packing import formats, opaque
from tritonpress_generator.packing.formats import Tensor

MINIMUM_BYTES = 1024
"""A tensor that is smaller stays with what lies around it: its place in the index would cost more than it saves."""


def cut(file: BinaryIO, path: Path) -> Iterator[Tensor]:
    """Yields the extents of a file, one behind the other, from its first byte to its last.

    A file that is not what its suffix says is cut as one that is not known.
    """
    size = file.seek(0, 2)
    end = 0
    for tensor in _tensors(file, path):
        # What overlaps, or lies outside, is a mistake of the file's, and bytes like any others.
        if tensor.bytes < MINIMUM_BYTES or tensor.offset < end or tensor.offset + tensor.bytes > size:
            continue
        yield from opaque.cut(file, end, tensor.offset)
        yield tensor
        end = tensor.offset + tensor.bytes
    yield from opaque.cut(file, end, size)


def _tensors(file: BinaryIO, path: Path) -> list[Tensor]:
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in {module.stem for module in Path(formats.__file__).parent.glob("[a-z]*.py")}:
        return []
    module = import_module(f"{formats.__name__}.{suffix}")
    try:
        return sorted(module.tensors(file, path), key=lambda tensor: tensor.offset)
    except (ValueError, RecursionError):
        return []
