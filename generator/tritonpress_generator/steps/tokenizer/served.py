"""What a version folder says of its tokenizer: texts to sequences, and sequences to executions of the engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pair_encoder import PairEncoder
from .sequences import Batching

from .text_encoder import TextEncoder  # isort: skip  (`tokenizers` after what sets its environment)

from tokenizers import Tokenizer

ENCODERS: Mapping[str, Callable[..., TextEncoder | PairEncoder]] = {
    "text_encoder": TextEncoder,
    "pair_encoder": PairEncoder,
}


@dataclass(frozen=True)
class Served:
    """How the texts of requests reach the engine."""

    encoder: TextEncoder | PairEncoder
    batching: Batching
    of_tokens: list[str]
    """The engine's outputs of a value a token."""


def served(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> Served:
    """Returns what `settings` describe.

    Args:
        tokenizer: Is copied, since an encoder sets its truncation.
        settings: `kind` of the encoder, settings of the `encoder` and of the `batching`, and `of_tokens`.
    """
    encoder = ENCODERS[settings["kind"]](Tokenizer.from_str(tokenizer.to_str()), **settings["encoder"])
    return Served(encoder, Batching(**settings["batching"]), list(settings["of_tokens"]))


def from_folder(folder: Path) -> Served:
    """Returns what `tokenizer.json` and `settings.json` in `folder` describe."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return served(Tokenizer.from_file(str(folder / "tokenizer.json")), settings)


def save(folder: Path, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Writes `tokenizer.json` and `settings.json` into `folder`."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def pad_id(tokenizer: Tokenizer) -> int:
    """Returns the id of the token of padding, 0 where there is none."""
    ids = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
    return next((number for number in ids if number is not None), 0)
