"""The files that a recipe names, so that what was computed of them is not taken for what others would give."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonpress_generator.recipe import Recipe

_OF_CHECKPOINT = ("*.json", "*.txt", "*.model", "1_Pooling/*.json")
"""What a checkpoint's folder has beside weights: its config, its tokenizer, what was chosen when it was trained."""


def digest(recipe: Recipe, *folders: Path) -> str:
    """Returns a hash of the content of every file that `recipe` names, wherever in it.

    What a word of the recipe means is its plugin's alone, so that each text of it is taken for the name of a file: one
    that is hashed though nobody reads it costs a computation more, one that is left out an answer that is wrong.

    Args:
        recipe: The recipe; its files are named relative to its folder.
        folders: What files are named relative to beside that, such as `--data`.
    """
    found = hashlib.sha256()
    bases = (recipe.folder, *folders)
    for name in sorted(set(_texts(recipe.raw))):
        for base in bases:
            path = base / name
            # Unlike Path.is_file, this takes a text that can be no file's name.
            if os.path.isfile(path):  # noqa: PTH113
                found.update(name.encode(errors="surrogatepass") + b"\0" + _sha256(path))
    return found.hexdigest()


def checkpoint_digest(*folders: Path | None) -> str:
    """Returns a hash of what the folders of a checkpoint and its adapter have beside weights."""
    found = hashlib.sha256()
    for folder in folders:
        paths = {path for pattern in _OF_CHECKPOINT for path in folder.glob(pattern)} if folder is not None else set()
        for path in sorted(paths):
            found.update(path.name.encode() + b"\0" + _sha256(path))
    return found.hexdigest()


def _texts(value: Any) -> Iterator[str]:
    """Yields every text in parsed YAML."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


def _sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
