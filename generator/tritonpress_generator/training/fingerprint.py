"""What says that a training is the same one, so that it goes on, or is found done."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from tritonpress_generator import named_files
from tritonpress_generator.checkpoint import Checkpoint
from tritonpress_generator.examples import Examples
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.training.loop import Feature
from tritonpress_generator.training.settings import TrainingConfig


def fingerprint_of(
    recipe: Recipe,
    checkpoint: Checkpoint,
    config: TrainingConfig,
    examples: Examples,
    features: Sequence[Feature],
    *more: object,
) -> str:
    """Returns a hash of all that determines a training, the machine left out.

    Args:
        recipe: Says how the task's answers are made and judged.
        checkpoint: The weights as they were, with the files beside them.
        config: How it is trained.
        examples: On what, and on what is chosen.
        features: The sequences that are trained on.
        more: What else determines it, such as what was done to the weights; not the weights themselves, whose bits
            depend on the number of threads that computed them.
    """
    task, serve = recipe.task, recipe.serve
    parts: list[Any] = [
        task.word,
        task.config.model_dump_json(),
        (serve.max_length, serve.too_long, recipe.finetune.config.max_length),
        (checkpoint.sha256, checkpoint.adapter_sha256),
        named_files.checkpoint_digest(checkpoint.folder, checkpoint.adapter),
        config.model_dump_json(),
        (examples.training, examples.held_out),
        features,
        more,
    ]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()
