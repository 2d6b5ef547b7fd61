"""Which examples each step of a training has, and its learning rate."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonpress_generator.training.schedule import Schedule
from tritonpress_generator.training.settings import FinetuneConfig


def config(**settings: object) -> FinetuneConfig:
    return FinetuneConfig(**settings)


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=700),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    number=st.integers(0, 3),
)
def test_an_epoch_has_every_example_once(lengths: list[int], batch_size: int, seed: int, number: int) -> None:
    schedule = Schedule(lengths, config(batch_size=batch_size, seed=seed))
    batches = schedule.epoch(number)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert len(batches) == schedule.steps_per_epoch == math.ceil(len(lengths) / batch_size)
    assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)
    assert batches == Schedule(lengths, config(batch_size=batch_size, seed=seed)).epoch(number)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    lengths = [5] * 64
    orders = [Schedule(lengths, config(batch_size=8, seed=seed)).epoch(n) for seed in (0, 1) for n in (0, 1)]
    assert all(first != second for i, first in enumerate(orders) for second in orders[:i])


def test_batches_have_like_lengths_in_a_random_order() -> None:
    lengths = np.random.default_rng(0).integers(5, 400, 4000).tolist()
    batches = Schedule(lengths, config(batch_size=16)).epoch(0)
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches]
    assert np.mean(spread) < 0.05 * (400 - 5)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.2


@given(
    examples=st.integers(1, 2000),
    batch_size=st.integers(1, 64),
    epochs=st.floats(0.01, 5),
    warmup=st.floats(0, 1, exclude_max=True),
)
def test_learning_rate_rises_to_what_was_asked_for_and_falls_to_zero(
    examples: int, batch_size: int, epochs: float, warmup: float
) -> None:
    settings = config(batch_size=batch_size, epochs=epochs, warmup=warmup, learning_rate=3e-4)
    schedule = Schedule([1] * examples, settings)
    rates = [schedule.learning_rate(step) for step in range(schedule.steps)]
    border = math.ceil(warmup * schedule.steps)
    assert min(rates) > 0
    assert all(a <= b for a, b in pairwise(rates[:border]))
    assert all(a > b for a, b in pairwise(rates[border:]))
    assert max(rates) == pytest.approx(3e-4)
    assert schedule.learning_rate(schedule.steps) == 0


@given(examples=st.integers(1, 500), epochs=st.floats(0.01, 5), evaluations=st.integers(1, 100))
def test_evaluations_are_evenly_spread_and_end_with_the_last_step(
    examples: int, epochs: float, evaluations: int
) -> None:
    schedule = Schedule([1] * examples, config(epochs=epochs, evaluations=evaluations))
    steps = schedule.evaluations
    assert steps[-1] == schedule.steps
    assert len(steps) == len(set(steps)) == min(evaluations, schedule.steps)
    gaps = np.diff([0, *steps])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
