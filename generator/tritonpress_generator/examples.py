"""A recipe's labelled examples beside those of the gate: what is trained on, and what is chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.recipe import Recipe, labelled
from tritonpress_generator.recipe_text import DataConfig
from tritonpress_generator.signature import Signature
from tritonpress_generator.training.distributed import World
from tritonpress_generator.training.loop import Feature


@dataclass(frozen=True)
class Examples:
    """The labelled examples of a recipe's `data`."""

    training: Sequence[Any]
    held_out: Sequence[Any]
    """On which is chosen; those that are made of them included."""
    scored: Mapping[str, Sequence[Any]]
    """By file, as they are there."""

    @classmethod
    def load(cls, recipe: Recipe, folder: Path) -> Examples:
        """Returns the examples in the files that `recipe` names.

        Args:
            recipe: The recipe.
            folder: In which the files are.

        Raises:
            InputError: The recipe names none, or a file is missing or wrong.
        """
        module, config, data = recipe.finetune.module, recipe.finetune.config, named(recipe)
        data.check_files(folder)
        training, held_out = (
            module.augmented(module.load([folder / file for file in files], recipe), config)
            for files in (data.train, data.validation)
        )
        scored = {file: module.load([folder / file], recipe) for file in (*data.validation, *data.test)}
        return cls(training, held_out, scored)


def named(recipe: Recipe) -> DataConfig:
    """Returns the recipe's `data`.

    Raises:
        InputError: It has none.
    """
    return labelled(recipe.data, path=recipe.path)


def answered(
    infer: Infer, signature: Signature, examples: Sequence[Any], recipe: Recipe, tokenizer: Tokenizer, world: World
) -> list[Any]:
    """Returns what `infer` answers to each of `examples`, of which each process asks its share."""
    share = examples[world.rank :: world.size]
    shares = world.gather(recipe.finetune.module.answers(infer, signature, share, recipe, tokenizer))
    return [shares[i % world.size][i // world.size] for i in range(len(examples))]


def finite(infer: Infer, *, where: str, remedy: str | None = None) -> Infer:
    """Returns `infer`, which then refuses to answer with what is no number.

    What is returned raises InputError, which says the `remedy`: by default that of a training at `where`.
    """

    remedy = remedy or f"lower {where}.learning_rate"

    def asked(feed: Mapping[str, Array]) -> dict[str, Array]:
        answers = infer(feed)
        if not all(np.isfinite(answer).all() for answer in answers.values()):
            raise InputError(f"{where}: the model's answers must be finite, are not; {remedy}")
        return answers

    return asked


def collate(features: Sequence[Feature]) -> dict[str, torch.Tensor]:
    """Returns the features' values by name, lists padded with 0 on the right."""
    batch = {}
    for name, first in features[0].items():
        values = [feature[name] for feature in features]
        if isinstance(first, list):
            width = max(map(len, values))
            values = [value + [0] * (width - len(value)) for value in values]
        batch[name] = torch.tensor(values)
    return batch
