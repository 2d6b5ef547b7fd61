"""Trees of files for packing, and a look at what is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

Tree = dict[str, bytes | None]
"""Path to content; None is an empty folder."""


def write(root: Path, tree: Tree) -> Path:
    """Returns `root`, in which the tree has been written."""
    root.mkdir(parents=True)
    for path, content in tree.items():
        place = root / path
        if content is None:
            place.mkdir(parents=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    return root


def read(root: Path) -> Tree:
    """Returns the tree in `root`."""
    found: Tree = {}
    for place in sorted(root.rglob("*")):
        if place.is_file():
            found[place.relative_to(root).as_posix()] = place.read_bytes()
        elif not any(place.iterdir()):
            found[place.relative_to(root).as_posix()] = None
    return found


def weights(count: int, seed: int = 0) -> np.ndarray:
    """Returns FP32 weights as those of a linear layer are: normal, of a small deviation."""
    return (np.random.default_rng(seed).standard_normal(count) * 0.04).astype(np.float32)


def bfloat16(values: np.ndarray) -> bytes:
    """Returns FP32 values cut to BF16."""
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
