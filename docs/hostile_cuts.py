"""The kind of hostile files that say how a model was cut (`passes: [restore]`)."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path

import transformers
from hostile_files import ROOT, Calls, Kind
from mutations import json_bytes, spoilt
from tokenizers import Tokenizer, models
from tritonpress_generator import cuts, recipe
from tritonpress_generator.checkpoint import CUTS, Checkpoint
from tritonpress_generator.compression import Compressed, Material, copied
from tritonpress_generator.errors import GeneratorError
from tritonpress_generator.passes import restore

_SHA256 = "0" * 64


class Cuts:
    """A `cuts.json` with a cut of every kind, done again on a tiny model."""

    name = "cuts"
    errors = (GeneratorError,)

    def __init__(self, model_repo: Path) -> None:
        tokens = ["[UNK]", *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), "lamp"]
        words = models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]")
        config = transformers.BertConfig(
            vocab_size=len(tokens), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=12,
        )  # fmt: skip
        self._original = Compressed(transformers.BertModel(config).eval(), Tokenizer(words))
        cut = cuts.layers(copied(self._original), [0, 1])
        for kind, kept in (("heads", [[0], [0, 1]]), ("ffn", [[0, 2], [1, 5, 7]])):
            cut = cuts.units(cut, kept, kind)
        cut = cuts.vocabulary(cuts.segments(cuts.positions(cut, 9), 1), [1, 2, 3])
        self._content = {
            "checkpoint": [_SHA256, None],
            "cuts": cuts.written(cut.cuts),
            "chosen": {"temperature": 1.5},
            "report": {"crop": {"layers": [0, 1]}, "distill": {"metric": "mrr", "after": 0.5}},
        }
        self._recipe = recipe.load(ROOT / "generator" / "recipes" / "recommendation.yaml")

    def case(self, chance: random.Random, folder: Path) -> Calls:
        content = json.dumps(self._content).encode()
        changed = spoilt(chance, content) if chance.random() < 0.2 else json_bytes(chance, self._content)
        (folder / CUTS).write_bytes(changed)
        checkpoint = Checkpoint("hostile", folder, (), _SHA256)
        material = Material(self._recipe, checkpoint, self._original, folder)
        yield "restore", partial(restore.apply, self._original, restore.Config(folder=str(folder)), material)


KINDS: dict[str, Callable[[Path], Kind]] = {Cuts.name: Cuts}
"""What `passes` read."""
