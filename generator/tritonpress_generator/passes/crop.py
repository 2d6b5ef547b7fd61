"""Takes whole layers, rows of the vocabulary, positions and segments out of a model.

Which layers: one after the other, always the one without which the task's loss on training examples is the lowest, as
dropping the upper ones is not always the best (Sajjad et al. 2023, "On the effect of dropping layers of pre-trained
transformer models"). The vocabulary: what the training examples and a corpus use (`vocabulary.py`); the size falls, the
speed stays.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, model_validator
from tokenizers import Tokenizer

from tritonpress_generator import cuts
from tritonpress_generator.answering import columns
from tritonpress_generator.compression import Compressed, Material, copied, original_layers
from tritonpress_generator.errors import InputError
from tritonpress_generator.pretrained import encoder_of
from tritonpress_generator.recipe_text import Settings
from tritonpress_generator.records import read_text
from tritonpress_generator.structure import depth, keep_layers
from tritonpress_generator.vocabulary import with_parts

_BATCH = 32
_AT_ONCE = 4096
"""Texts that are tokenised together: what they become takes many times their room."""


class VocabularyConfig(Settings):
    corpus: list[str] = Field(default_factory=list)
    """Text files whose tokens are kept too, relative to `--data`."""
    min_count: int = Field(default=1, ge=1)
    """How often a token must occur to be kept."""
    most: int | None = Field(default=None, ge=1)
    """How many of them are kept at most, the most frequent ones; beside those that any text is spelt with."""


class Config(Settings):
    layers: int | list[int] | None = None
    """How many layers stay, or which, from 0."""
    samples: int = Field(default=256, ge=16)
    """How many training examples show which layers matter."""
    vocabulary: VocabularyConfig | None = None
    """Keeps the tokens that the training examples and a corpus have."""
    positions: int | None = Field(default=None, ge=8)
    """How many positions stay; of models that have a table of them."""
    one_segment: bool = False
    """Leaves the first segment alone; for tasks that read one text."""

    @model_validator(mode="after")
    def _says_what(self) -> Config:
        if self.layers is None and self.vocabulary is None and self.positions is None and not self.one_segment:
            raise ValueError("give layers, vocabulary, positions or one_segment")
        return self


def apply(given: Compressed, config: Config, material: Material) -> Compressed:
    """Returns the cropped model, and its tokenizer.

    Args:
        given: Is left as it is.
        config: The settings.
        material: Has the training examples.

    Raises:
        InputError: There is less than the recipe wants to keep, or what it serves needs, or there are no examples, or
            the loss on them is not finite.
    """
    result = copied(given)
    report: dict[str, Any] = {}
    if config.layers is not None:
        before, kept = original_layers(given), _layers(result, config, material)
        result = cuts.layers(result, kept)
        report["layers"] = [before[layer] for layer in kept]
    if config.positions is not None:
        result = cuts.positions(result, _positions(result.model, config.positions, material.recipe.serve.max_length))
        report["positions"] = config.positions
    if config.one_segment:
        check_segments(result.model, material)
        result = cuts.segments(result, 1)
        report["segments"] = 1
    if config.vocabulary is not None:
        used = _used(result.tokenizer, config.vocabulary, material) | _counted_from(result.model)
        result = cuts.vocabulary(result, sorted(used))
        report["vocabulary"] = result.tokenizer.get_vocab_size()
    chosen = result.chosen
    if config.layers is not None and material.recipe.data is not None:
        chosen = material.chosen(result.model, result.tokenizer)
    crop = result.report.get("crop", {}) | report
    return replace(result, report=result.report | {"crop": crop}, chosen=chosen)


def _layers(result: Compressed, config: Config, material: Material) -> list[int]:
    """Returns which layers are left."""
    count = depth(result.model)
    wanted = config.layers
    if isinstance(wanted, list):
        if not wanted or wanted != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= count:
            raise InputError(
                f"passes.crop: layers must be ascending and from 0 to {count - 1} (the model's), got {wanted}; "
                "correct them"
            )
        return wanted
    if wanted is None or not 1 <= wanted <= count:
        raise InputError(f"passes.crop: layers must be from 1 to {count} (the model's), got {wanted}; correct it")
    features = material.features(result.tokenizer, config.samples, model=result.model, as_served=True)
    head, _ = material.head(result.model)

    def loss(layers: list[int]) -> float:
        put_back = keep_layers(result.model, layers)
        with torch.inference_mode():
            total = sum(float(material.losses(head, batch).sum()) for batch in material.batches(features, _BATCH))
        put_back()
        # The least of numbers and NaN is any of them.
        if not math.isfinite(total):
            raise InputError(
                "passes.crop: the loss on the training examples must be finite, is not; check the checkpoint and the "
                "labels"
            )
        return total

    left = list(range(count))
    while len(left) > wanted:
        without = [[layer for layer in left if layer != gone] for gone in left]
        left = min(without, key=loss)
    return left


def _positions(model: Any, positions: int, max_length: int) -> int:
    """Returns how many rows of the table of positions are left."""
    encoder = encoder_of(model)
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    if not isinstance(table, torch.nn.Embedding):
        raise InputError(
            f"passes.crop: positions: {encoder.config.model_type} has no table of positions; leave positions out"
        )
    # RoBERTa and its kin begin to count behind the padding token.
    offset = 0 if table.padding_idx is None else table.padding_idx + 1
    if positions < max_length or positions + offset > table.num_embeddings:
        raise InputError(
            f"passes.crop: positions must be from {max_length} (serve.max_length) to {table.num_embeddings - offset} "
            f"(the model's), got {positions}; correct it, or lower serve.max_length"
        )
    return positions + offset


def check_segments(model: Any, material: Material) -> None:
    """Refuses to take segments out that there are not, or that the task reads.

    Raises:
        InputError: See there.
    """
    encoder = encoder_of(model)
    table = getattr(getattr(encoder, "embeddings", None), "token_type_embeddings", None)
    if not isinstance(table, torch.nn.Embedding):
        raise InputError(
            f"passes.crop: one_segment: {encoder.config.model_type} has no table of segments; leave one_segment out"
        )
    inputs = material.recipe.task.module.INPUTS
    if len(inputs) > 1:
        raise InputError(
            f"passes.crop: one_segment: {material.recipe.task.word} reads {' and '.join(inputs)} as two segments; "
            "leave one_segment out"
        )


def _used(tokenizer: Tokenizer, config: VocabularyConfig, material: Material) -> set[int]:
    """Returns the ids that training examples and corpus have, often enough."""
    texts: list[list[str]] = []
    if material.recipe.data is not None:
        # Whole: what is served may be longer than what is trained on (`finetune.max_length`).
        examples = columns(material.recipe.finetune.module.texts(material.examples.training))
        texts += [[text.decode() for text in column] for column in examples.values()]
    texts += [read_text(material.folder / name).splitlines() for name in config.corpus]
    counts: Counter[int] = Counter()
    for column in texts:
        for first in range(0, len(column), _AT_ONCE):
            part = column[first : first + _AT_ONCE]
            for encoding in tokenizer.encode_batch_fast(part, add_special_tokens=False):
                counts.update(encoding.ids)
    if not counts:
        raise InputError("passes.crop: vocabulary: needs texts, got none; add 'data' or passes.crop.vocabulary.corpus")
    often = [number for number, count in counts.most_common(config.most) if count >= config.min_count]
    return with_parts(tokenizer, often)


def _counted_from(model: Any) -> set[int]:
    """Returns the ids up to padding's where positions are counted from it (RoBERTa), so that it stays where it is."""
    table = getattr(getattr(encoder_of(model), "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    return set() if padding is None else set(range(padding + 1))
