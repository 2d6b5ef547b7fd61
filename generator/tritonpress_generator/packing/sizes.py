"""How small each precision has become, and how small coding byte by byte could have made it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tritonpress_generator.packing import coding
from tritonpress_generator.packing.formats import WORD_BYTES

HEADER = ("precision", "MB", "packed MB", "share", "order-0 bound", "to the bound")


@dataclass
class Size:
    """What all contents of one precision take, in bytes."""

    bytes: int = 0
    packed_bytes: int = 0
    bound_bytes: float = 0.0
    """Order-0 entropy of the byte planes, each block's by itself."""


@dataclass
class Packed:
    """What a repository has become."""

    files: int = 0
    bytes: int = 0
    """Of the repository's files."""
    packed_bytes: int = 0
    """Of the bundle: blocks, header and index."""
    repeated_bytes: int = 0
    """Of contents that were there already, and are stored once."""
    sizes: dict[str, Size] = field(default_factory=lambda: {precision: Size() for precision in WORD_BYTES})
    """Of each precision's contents, stored once."""


def entropy_bytes(planes: Iterable[coding.Bytes], *, corrected: bool = False) -> float:
    """Returns the order-0 entropy of planes, each by itself, which no code of single bytes goes below (Shannon 1948).

    Args:
        planes: Of a block.
        corrected: Of a small sample the entropy is underestimated; Miller and Madow's term (1955) mends that.
    """
    bits = 0.0
    for plane in planes:
        counts = np.bincount(plane, minlength=256)
        seen = counts[counts > 0].astype(np.float64)
        bits += float(np.sum(seen * np.log2(len(plane) / seen)))
        bits += (len(seen) - 1) / (2 * math.log(2)) if corrected else 0.0
    return bits / 8


def rows(packed: Packed) -> list[list[str]]:
    """Returns a line for each precision that there is, for what was there already and for all; under `HEADER`."""
    lines = [
        [
            precision,
            *_megabytes(size.bytes, size.packed_bytes),
            f"{size.bound_bytes / size.bytes:.2%}",
            f"{size.packed_bytes / size.bound_bytes - 1:+.2%}" if size.bound_bytes else "",
        ]
        for precision, size in packed.sizes.items()
        if size.bytes
    ]
    if packed.repeated_bytes:
        lines.append(["repeated", *_megabytes(packed.repeated_bytes, 0), "", ""])
    stored = sum(size.packed_bytes for size in packed.sizes.values())
    lines.append(["index", "", f"{(packed.packed_bytes - stored) / 1e6:.3f}", "", "", ""])
    lines.append(["all", *_megabytes(packed.bytes, packed.packed_bytes), "", ""])
    return lines


def _megabytes(size: int, packed: int) -> list[str]:
    return [f"{size / 1e6:.3f}", f"{packed / 1e6:.3f}", f"{packed / size:.2%}" if size else ""]
