"""Trains a head of labels: one a text (cross-entropy), or any number (a decision for each)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tritonpress_generator import labelled_texts
from tritonpress_generator.answering import Texts, encoded, make_encoder
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Infer
from tritonpress_generator.labelled_texts import LabelledText
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.signature import Signature
from tritonpress_generator.steps.classification.postprocessor import Postprocessor
from tritonpress_generator.steps.tokenizer.text_encoder import TextEncoder
from tritonpress_generator.tasks import classification as task
from tritonpress_generator.training.settings import FinetuneConfig

if TYPE_CHECKING:
    import torch

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


def texts(examples: Sequence[LabelledText]) -> Texts:
    """Returns the public input of `examples`."""
    return task.texts_of(examples)


def augmented(examples: Sequence[LabelledText], config: Config) -> Sequence[LabelledText]:
    """Returns `examples`: nothing is made of them."""
    return examples


def _labels_of(examples: Sequence[LabelledText], recipe: Recipe) -> list[str]:
    """Returns the recipe's labels, else all that occur, sorted."""
    named: list[str] | None = recipe.task.config.labels
    labels = named or sorted({label for row in examples for label in row.labels})
    if len(labels) < 2:
        raise InputError(f"{recipe.path}: the training data must have at least 2 labels, has {labels}; add examples")
    for row in examples:
        task.check_labels(row, labels)
    return labels


def check(
    examples: Sequence[LabelledText],
    recipe: Recipe,
    signature: Signature,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
) -> None:
    """Refuses examples that the model could not be scored on; `settings` are those of its config.

    Raises:
        InputError: A text cannot be served, or has a label that the training data has not.
    """
    logits = signature.outputs["logits"].width
    labels = task.labels_of(settings, recipe.task.config, logits=logits, source=recipe.checkpoint.source)
    for row in examples:
        task.check_labels(row, labels)
    encoded(make_encoder(recipe, signature, tokenizer), task.texts_of(examples))


def deciding(examples: Sequence[LabelledText], recipe: Recipe) -> Sequence[LabelledText]:
    """Returns `examples`: all of them decide which weights are the best."""
    return examples


def as_served(
    examples: Sequence[LabelledText], infer: Infer, signature: Signature, recipe: Recipe, tokenizer: Tokenizer
) -> Sequence[LabelledText]:
    """Returns `examples`: of what is served, nothing is left to the original."""
    return examples


def model_settings(examples: Sequence[LabelledText], recipe: Recipe) -> dict[str, Any]:
    """Returns what the model's config must say of the head."""
    labels = _labels_of(examples, recipe)
    multi_label = recipe.task.config.multi_label
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
    }


def features(
    examples: Sequence[LabelledText],
    recipe: Recipe,
    tokenizer: Tokenizer,
    signature: Signature,
    settings: Mapping[str, Any],
) -> list[Feature]:
    """Returns a feature a text; `settings` are those of the model's config.

    Raises:
        InputError: A text cannot be read, or has a label that the model has not.
    """
    config: Config = recipe.finetune.config
    logits = signature.outputs["logits"].width
    labels = task.labels_of(settings, recipe.task.config, logits=logits, source=recipe.checkpoint.source)
    for row in examples:
        task.check_labels(row, labels)
    limits = task.encoder_settings(recipe, signature) | {"too_long": "cut"}
    limits |= {"max_length": config.max_length} if config.max_length else {}
    encoder = TextEncoder(Tokenizer.from_str(tokenizer.to_str()), **limits)
    rows = encoded(encoder, task.texts_of(examples)).ids
    multi_label = recipe.task.config.multi_label
    return [
        {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "labels": [float(label in row.labels) for label in labels] if multi_label else labels.index(row.labels[0]),
        }
        for row, ids in zip(examples, rows, strict=True)
    ]


def outputs(model: Callable[..., Any], batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Returns the logits, FP32 `(batch, labels)`."""
    return (model(batch["input_ids"], batch["attention_mask"]).float(),)


def outputs_as_served(
    outputs: tuple[torch.Tensor, ...], originals: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Returns `outputs`: of what is served, nothing is left to the original."""
    return outputs


def losses(outputs: tuple[torch.Tensor, ...], batch: dict[str, torch.Tensor], world: World) -> torch.Tensor:
    """Returns the cross-entropy of each text's labels, FP32 `(batch,)`."""
    import torch

    (logits,) = outputs
    labels = batch["labels"]
    if labels.ndim == 1:
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def distances(
    outputs: tuple[torch.Tensor, ...],
    others: tuple[torch.Tensor, ...],
    batch: dict[str, torch.Tensor],
    temperature: float,
) -> torch.Tensor:
    """Returns how far each text's probabilities are from those of the model that is learnt from, FP32 `(batch,)`.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network": the Kullback-Leibler divergence at a
    temperature, times its square. Of several labels a text: the mean of theirs.
    """
    import torch

    from tritonpress_generator.training.distances import divergence

    (logits,), (wanted,) = outputs, others
    if batch["labels"].ndim == 1:
        return divergence(logits / temperature, wanted / temperature) * temperature**2
    # A label that may be or not is two that exclude each other: their logits are ±half.
    both, wanted_both = (torch.stack([x, -x], -1) / (2 * temperature) for x in (logits, wanted))
    return divergence(both, wanted_both).mean(1) * temperature**2


def answers(
    infer: Infer, signature: Signature, examples: Sequence[LabelledText], recipe: Recipe, tokenizer: Tokenizer
) -> list[Any]:
    """Returns the logits of each of `examples`."""
    return list(task.logits_of(recipe, infer, signature, tokenizer, examples)) if examples else []


def judge(
    examples: Sequence[LabelledText], answers: Sequence[Any], recipe: Recipe, settings: Mapping[str, Any]
) -> Callable[[NDArray[np.int64]], dict[str, float]]:
    """Returns what gives the metrics of logits on those of `examples` that it is asked for by their indices.

    `settings` are the model's, and what was chosen.
    """
    config = recipe.task.config
    logits = np.array(answers)
    labels = task.labels_of(settings, config, logits=logits.shape[1], source=recipe.checkpoint.source)
    temperature = config.temperature or settings.get("temperature", 1.0)
    postprocessor = Postprocessor(labels=labels, multi_label=config.multi_label, temperature=temperature)
    probability = postprocessor.probabilities(logits)
    truth = task.indicators(examples, labels)
    return lambda rows: task.scores(truth[rows], probability[rows], multi_label=config.multi_label)


def chosen(
    examples: Sequence[LabelledText], answers: Sequence[Any], recipe: Recipe, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the temperature that is chosen on the held-out examples."""
    config = recipe.task.config
    logits = np.array(answers)
    labels = task.labels_of(settings, config, logits=logits.shape[1], source=recipe.checkpoint.source)
    return {"temperature": task.best_temperature(logits, examples, labels, multi_label=config.multi_label)}
