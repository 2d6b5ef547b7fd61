"""Trains a head of labels: one a text (cross-entropy), or any number (a decision for each)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from tritonpress_generator import labelled_texts
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Infer
from tritonpress_generator.labelled_texts import LabelledText
from tritonpress_generator.recipe import FinetuneConfig, Recipe
from tritonpress_generator.signature import Signature
from tritonpress_generator.steps.classification.postprocessor import Postprocessor
from tritonpress_generator.steps.tokenizer.text_encoder import TextEncoder
from tritonpress_generator.tasks import classification as task
from tritonpress_generator.training.distributed import World
from tritonpress_generator.training.loop import Feature

METRIC = task.METRICS[0]


class Config(FinetuneConfig):
    """Has no settings of its own."""


def load(paths: Sequence[Path], recipe: Recipe) -> list[LabelledText]:
    """Returns the labelled texts of all of `paths`.

    Raises:
        InputError: A file is missing or wrong.
    """
    multi_label = recipe.task.config.multi_label
    return [row for path in paths for row in labelled_texts.load(path, multi_label=multi_label)]


def augmented(examples: Sequence[LabelledText], config: Config) -> Sequence[LabelledText]:
    """Returns `examples`: nothing is made of them."""
    return examples


def labels_of(examples: Sequence[LabelledText], recipe: Recipe) -> list[str]:
    """Returns the recipe's labels, else all that occur, sorted."""
    named: list[str] | None = recipe.task.config.labels
    labels = named or sorted({label for row in examples for label in row.labels})
    if len(labels) < 2:
        raise InputError(f"{recipe.path}: the training data must have at least 2 labels, has {labels}; add examples")
    for row in examples:
        task.check_labels(row, labels)
    return labels


def model_settings(examples: Sequence[LabelledText], recipe: Recipe) -> dict[str, Any]:
    """Returns what the model's config must say of the head."""
    labels = labels_of(examples, recipe)
    multi_label = recipe.task.config.multi_label
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
    }


def features(
    examples: Sequence[LabelledText], recipe: Recipe, tokenizer: Tokenizer, signature: Signature
) -> list[Feature]:
    """Returns a feature a text."""
    config: Config = recipe.finetune.config  # type: ignore[union-attr]
    labels = labels_of(examples, recipe)
    settings = task.encoder_settings(recipe, signature) | {"too_long": "cut"}
    encoder = TextEncoder(tokenizer, **settings | ({"max_length": config.max_length} if config.max_length else {}))
    rows = encoder.encode([row.text.encode() for row in examples]).ids
    multi_label = recipe.task.config.multi_label
    return [
        {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "labels": [float(label in row.labels) for label in labels] if multi_label else labels.index(row.labels[0]),
        }
        for row, ids in zip(examples, rows, strict=True)
    ]


def losses(model: Callable[..., Any], batch: dict[str, torch.Tensor], world: World) -> torch.Tensor:
    """Returns the cross-entropy of each text's labels, FP32 `(batch,)`."""
    logits = model(batch["input_ids"], batch["attention_mask"]).float()
    labels = batch["labels"]
    if labels.ndim == 1:
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def answers(
    infer: Infer, signature: Signature, examples: Sequence[LabelledText], recipe: Recipe, tokenizer: Tokenizer
) -> list[Any]:
    """Returns the logits of each of `examples`."""
    return list(task.logits_of(recipe, infer, signature, tokenizer, examples)) if examples else []


def score(
    examples: Sequence[LabelledText], answers: Sequence[Any], recipe: Recipe, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Returns the metrics of logits; `settings` are the model's, and what was chosen."""
    config = recipe.task.config
    labels = task.labels_of(settings, config, source=recipe.checkpoint.source)
    postprocessor = Postprocessor(
        labels=labels, multi_label=config.multi_label, temperature=settings.get("temperature", 1.0)
    )
    probability = postprocessor.probabilities(np.array(answers))
    return task.scores(task.indicators(examples, labels), probability, multi_label=config.multi_label)


def chosen(
    infer: Infer,
    signature: Signature,
    examples: Sequence[LabelledText],
    recipe: Recipe,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the temperature that is chosen on the held-out examples."""
    config = recipe.task.config
    labels = task.labels_of(settings, config, source=recipe.checkpoint.source)
    logits = task.logits_of(recipe, infer, signature, tokenizer, examples)
    return {"temperature": task.best_temperature(logits, examples, labels, multi_label=config.multi_label)}
