"""Finds the file that a recipe's word names: `graph: [fuse]` is `graph/fuse.py`."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tritonpress_generator.errors import InputError

_OF_ENGINES = {
    ("graph", "fp16"): "FP16 is a setting of engines: precision: fp16 of tensorrt or onnxruntime_gpu; ",
    ("graph", "bf16"): "BF16 is a setting of engines: precision: bf16 of tensorrt or openvino; ",
}
"""What is looked for in the wrong place, by kind and word."""


def names(kind: str) -> list[str]:
    """Returns the words that a recipe may use for `kind` (`tasks`, `passes`, `graph`, `engines`), sorted."""
    folder = Path(__file__).parent / kind
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def check(kind: str, word: str, *, path: str) -> None:
    """Refuses a word that names no file; imports none.

    Args:
        kind: `tasks`, `passes`, `graph`, `engines`, `lengths`, `layouts` or `training`.
        word: The recipe's word.
        path: Where in the recipe the word stands, for the message.

    Raises:
        InputError: There is no such file.
    """
    known = names(kind)
    if word not in known:
        close = difflib.get_close_matches(word, known, n=1)
        remedy = _OF_ENGINES.get((kind, word)) or (f"did you mean {close[0]!r}? " if close else "")
        raise InputError(f"{path}: unknown word {word!r}; {remedy}available: {', '.join(known) or 'none yet'}")


def find(kind: str, word: str, *, path: str) -> ModuleType:
    """Returns the module that `word` names; imported only now, so that nobody pays for what is not asked for.

    Raises:
        InputError: As `check`.
    """
    check(kind, word, path=path)
    return import_module(f"tritonpress_generator.{kind}.{word}")
