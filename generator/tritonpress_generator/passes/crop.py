"""Takes whole layers, rows of the vocabulary, positions and segments out of a model.

Which layers: one after the other, always the one without which the task's loss on training examples is the lowest, as
dropping the upper ones is not always the best (Sajjad et al. 2023, "On the effect of dropping layers of pre-trained
transformer models"). The vocabulary: what the training examples and a corpus use (`vocabulary.py`); the size falls, the
speed stays.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from pydantic import Field, model_validator
from tokenizers import Tokenizer

from tritonpress_generator.compression import Compressed, Material, copied, original_layers
from tritonpress_generator.errors import InputError
from tritonpress_generator.pretrained import encoder_of
from tritonpress_generator.recipe import Settings
from tritonpress_generator.records import read_text
from tritonpress_generator.structure import depth, keep_layers
from tritonpress_generator.vocabulary import cropped, with_parts

_BATCH = 32
_SPECIAL_IDS = tuple(f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep", "mask", "unk"))


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
        InputError: There is less than the recipe wants to keep, or what it serves needs, or there are no examples.
    """
    result = copied(given)
    report: dict[str, Any] = {}
    if config.layers is not None:
        before = original_layers(given)
        report["layers"] = [before[layer] for layer in _layers(result, config, material)]
    if config.positions is not None:
        report["positions"] = _positions(result.model, config.positions, material.recipe.serve.max_length)
    if config.one_segment:
        report["segments"] = _one_segment(result.model, material)
    tokenizer, ids = result.tokenizer, result.original_ids
    if config.vocabulary is not None:
        used = _used(tokenizer, config.vocabulary, material) | _counted_from(result.model)
        tokenizer, old = cropped(tokenizer, used)
        _keep_rows(result.model, old)
        ids = tuple(old if ids is None else (ids[number] for number in old))
        report["vocabulary"] = len(old)
    return Compressed(result.model, tokenizer, result.report | {"crop": result.report.get("crop", {}) | report}, ids)


def _layers(result: Compressed, config: Config, material: Material) -> list[int]:
    """Takes layers out, and returns which are left."""
    count = depth(result.model)
    wanted = config.layers
    if isinstance(wanted, list):
        if not wanted or wanted != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= count:
            raise InputError(
                f"passes.crop: layers must be ascending and from 0 to {count - 1} (the model's), got {wanted}; "
                "correct them"
            )
        keep_layers(result.model, wanted)
        return wanted
    if wanted is None or not 1 <= wanted <= count:
        raise InputError(f"passes.crop: layers must be from 1 to {count} (the model's), got {wanted}; correct it")
    features = material.features(result.tokenizer, config.samples)
    head, _ = material.head(result.model)

    def loss(layers: list[int]) -> float:
        put_back = keep_layers(result.model, layers)
        with torch.inference_mode():
            total = sum(float(material.losses(head, batch).sum()) for batch in material.batches(features, _BATCH))
        put_back()
        return total

    left = list(range(count))
    while len(left) > wanted:
        without = [[layer for layer in left if layer != gone] for gone in left]
        left = min(without, key=loss)
    keep_layers(result.model, left)
    return left


def _positions(model: Any, positions: int, max_length: int) -> int:
    """Shortens the table of positions, and returns how many it has."""
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
    rows = positions + offset
    encoder.embeddings.position_embeddings = _embedding(table, torch.arange(rows))
    encoder.config.max_position_embeddings = rows
    for name in ("position_ids", "token_type_ids"):
        buffer = getattr(encoder.embeddings, name, None)
        if isinstance(buffer, torch.Tensor):
            setattr(encoder.embeddings, name, buffer[:, :rows].clone())
    return positions


def _one_segment(model: Any, material: Material) -> int:
    """Leaves the first segment alone, and returns how many there are."""
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
    encoder.embeddings.token_type_embeddings = _embedding(table, torch.arange(1))
    encoder.config.type_vocab_size = 1
    return 1


def _used(tokenizer: Tokenizer, config: VocabularyConfig, material: Material) -> set[int]:
    """Returns the ids that training examples and corpus have, often enough."""
    counts: Counter[int] = Counter()
    if material.recipe.data is not None:
        for feature in material.features(tokenizer, len(material.examples.training)):
            for name in ("input_ids", "item_ids"):
                counts.update(feature.get(name, ()))
    for name in config.corpus:
        lines = read_text(material.folder / name).splitlines()
        for encoding in tokenizer.encode_batch(lines, add_special_tokens=False):
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


def _keep_rows(model: Any, old: list[int]) -> None:
    """Leaves the embeddings of the tokens that had the ids `old`, in their order."""
    encoder = encoder_of(model)
    table = encoder.get_input_embeddings()
    new = {before: after for after, before in enumerate(old)}
    # Some checkpoints have more rows than tokens; none of them can be asked for.
    encoder.set_input_embeddings(_embedding(table, torch.tensor(old), new))
    for config in (encoder.config, model.config):
        config.vocab_size = len(old)
    for name in _SPECIAL_IDS:
        before = getattr(encoder.config, name, None)
        if before in new:
            setattr(encoder.config, name, new[before])


def _embedding(table: torch.nn.Embedding, rows: torch.Tensor, new: dict[int, int] | None = None) -> torch.nn.Embedding:
    """Returns `rows` of a table; `new` gives the places of what was at others."""
    padding = table.padding_idx
    if padding is not None and new is not None:
        padding = new.get(padding)
    cropped = torch.nn.Embedding(len(rows), table.embedding_dim, padding_idx=padding)
    cropped.weight = torch.nn.Parameter(table.weight.detach()[rows].clone())
    return cropped
