"""Optimisation profiles: for which batches and lengths a plan's kernels are chosen."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from tritonpress_generator.engines import Asked
from tritonpress_generator.errors import InputError
from tritonpress_generator.recipe_text import Settings

Bounds = tuple[int, int, int]
"""The least, the one that kernels are chosen for, and the most."""


class Profile(Settings):
    """One profile; each bound as [min, opt, max]."""

    batch: list[int] = Field(min_length=3, max_length=3)
    """Sequences of an execution."""
    length: list[int] = Field(min_length=3, max_length=3)
    """Tokens of a sequence."""


def profiles(asked: Asked, given: Sequence[Profile] | None) -> list[Profile]:
    """Returns the recipe's profiles, or those that suit what is asked.

    Where batches are padded to borders, each border has a profile of that length alone, whose kernels need not
    serve another: Triton's backend takes for a request the profile whose opt is the nearest. Else one profile has all
    lengths, and the mean of what is asked as its opt.

    Raises:
        InputError: A profile is out of order, or what will be asked is in none of them.
    """
    if given is not None:
        _check(asked, given)
        return list(given)
    batch = [1, asked.max_batch_size, asked.max_batch_size]
    if asked.borders:
        return [Profile(batch=batch, length=[border] * 3) for border in asked.borders]
    mean = round(sum(asked.lengths) / len(asked.lengths)) if asked.lengths else asked.max_length
    return [Profile(batch=batch, length=[1, max(1, min(mean, asked.max_length)), asked.max_length])]


def _check(asked: Asked, given: Sequence[Profile]) -> None:
    where = "engine.tensorrt.optimization_profiles"
    if not given:
        raise InputError(f"{where}: must have at least 1 profile, got 0; leave it out to have them chosen")
    for number, profile in enumerate(given):
        for name, bounds in (("batch", profile.batch), ("length", profile.length)):
            if bounds != sorted(bounds) or bounds[0] < 1:
                raise InputError(
                    f"{where}[{number}].{name}: must be [min, opt, max], ascending and from 1 on, got {bounds}"
                )
    # Warm-up, golden requests and clients ask for any of these.
    lengths = asked.borders or tuple(range(1, asked.max_length + 1))
    for length in lengths:
        for batch in range(1, asked.max_batch_size + 1):
            if not any(_holds(p.batch, batch) and _holds(p.length, length) for p in given):
                raise InputError(
                    f"{where}: must hold every execution that will be asked, none holds a batch of {batch} at {length} "
                    "tokens; widen one, or lower serve.max_batch_size or serve.max_length"
                )


def _holds(bounds: Sequence[int], value: int) -> bool:
    return bounds[0] <= value <= bounds[2]
