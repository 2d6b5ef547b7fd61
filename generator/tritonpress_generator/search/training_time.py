"""How long a candidate's distillation takes on this machine, by a few of its steps."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

from tritonpress_generator.compression import Compressed, Material, copied
from tritonpress_generator.trainable import with_adapters
from tritonpress_generator.training.loop import Feature, computes_in_bf16

_STEPS = 4
"""Of how many the mean is taken, after one that does not count."""


@dataclass(frozen=True)
class TrainingTime:
    """Of distillations that differ in their epochs alone, of the model as it is: a smaller one takes less."""

    epoch_s: float
    """Of all steps that see every example once."""
    evaluation_s: float
    evaluations: int

    def __call__(self, epochs: float) -> float:
        """Returns the seconds of so many epochs, evaluations included; of none, 0."""
        return epochs * self.epoch_s + self.evaluations * self.evaluation_s if epochs else 0.0


def measured(material: Material, config: Any, *, evaluation_s: float) -> TrainingTime:
    """Returns how long distillations take.

    Args:
        material: Has the examples and the original.
        config: Of the recipe's `distill`.
        evaluation_s: How long it takes to score the model on the held-out examples.

    Raises:
        InputError: There are no examples, or one of them cannot be read.
    """
    examples = len(material.examples.training)
    drawn = min((_STEPS + 1) * config.batch_size, examples)
    features = material.features(material.original.tokenizer, drawn)
    # A long example may have several sequences.
    sequences = min(config.samples or examples, examples) * len(features) / drawn
    steps = math.ceil(sequences / config.batch_size)
    # Beside those on the way: before the first step, and when the task chooses a threshold or a temperature.
    return TrainingTime(steps * _step_s(material, config, features), evaluation_s, config.evaluations + 2)


def _step_s(material: Material, config: Any, features: Sequence[Feature]) -> float:
    """Returns how long a step takes: the answers of both models, the gradients, and the change of the weights."""
    head = _student(material.original, config, material).train()
    teacher, _ = material.head(material.original.model)
    outputs = material.recipe.finetune.module.outputs
    optimizer = torch.optim.AdamW([parameter for parameter in head.parameters() if parameter.requires_grad])
    bf16 = computes_in_bf16(config, material.world.device)
    seconds = []
    for batch in material.batches(features[: (_STEPS + 1) * config.batch_size], config.batch_size):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                outputs(teacher, batch)
            losses = material.losses(head, batch)
        losses.float().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return mean(seconds[1:] or seconds)


def _student(original: Compressed, config: Any, material: Material) -> torch.nn.Module:
    """Returns the task's model on a copy of `original`, of which is trained what the recipe says."""
    student = copied(original)
    student.model.requires_grad_(True)
    if config.lora is not None:
        with_adapters(student.model, config.lora, material.checkpoint.tensors)
    head, _ = material.head(student.model)
    return head
