"""Which examples each step of the training has, and its learning rate; all known beforehand, from the seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tritonpress_generator.training.settings import TrainingConfig

_POOL = 50
"""Batches whose examples are sorted by length together: batches of like length, and still in a random order."""


@dataclass(frozen=True)
class Schedule:
    """The steps of a training."""

    lengths: Sequence[int]
    """Of the examples, in tokens."""
    config: TrainingConfig

    @property
    def steps_per_epoch(self) -> int:
        """How many steps see every example once; the last batch of an epoch may be smaller."""
        return math.ceil(len(self.lengths) / self.config.batch_size)

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return max(1, round(self.steps_per_epoch * self.config.epochs))

    @property
    def evaluations(self) -> list[int]:
        """After how many steps the model is evaluated, ascending."""
        count = min(self.config.evaluations, self.steps)
        return [round(self.steps * (i + 1) / count) for i in range(count)]

    def epoch(self, number: int) -> list[list[int]]:
        """Returns the batches of an epoch, indices of examples."""
        generator = np.random.default_rng([self.config.seed, number])
        order = generator.permutation(len(self.lengths))
        size = self.config.batch_size
        lengths = np.asarray(self.lengths)
        batches: list[list[int]] = []
        for start in range(0, len(order), size * _POOL):
            pool = order[start : start + size * _POOL]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += [pool[i : i + size].tolist() for i in range(0, len(pool), size)]
        return [batches[i] for i in generator.permutation(len(batches))]

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of `step`, from 0: linear up over the warm-up, linear down to 0 at the end."""
        warm_up = self.config.warmup * self.steps
        if step < warm_up:
            return self.config.learning_rate * min(1.0, (step + 1) / warm_up)
        return self.config.learning_rate * (self.steps - step) / max(1.0, self.steps - warm_up)
