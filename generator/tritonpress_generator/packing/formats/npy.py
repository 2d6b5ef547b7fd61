"""The array of a NumPy file (numpy.lib.format)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tritonpress_generator.packing.formats import Tensor

_PRECISIONS = {"<f4": "FP32", "<f2": "FP16", "|i1": "INT8", "|u1": "INT8"}


def tensors(file: BinaryIO, path: Path) -> Iterator[Tensor]:
    """Yields the array.

    Raises:
        ValueError: It is no NumPy file.
    """
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(array, np.memmap) and array.nbytes:
        yield Tensor(int(array.offset), array.nbytes, _PRECISIONS.get(array.dtype.str, "other"))
