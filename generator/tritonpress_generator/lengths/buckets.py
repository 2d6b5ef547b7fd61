"""Requests padded to the next of a few lengths, so that those of one length share an execution.

The borders are the recipe's, or those that compute the fewest padded tokens on its sample texts: dynamic programming
over the distinct lengths, exact in O(count * distinct lengths squared).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from tritonpress_generator.errors import InputError
from tritonpress_generator.lengths import exact
from tritonpress_generator.recipe_text import ServeConfig, Settings
from tritonpress_generator.signature import Signature

ATTENTION = exact.ATTENTION
POSTPROCESSING_BATCHES = exact.POSTPROCESSING_BATCHES
export = exact.export
native = exact.native
as_padded = exact.as_padded
engine_inputs = exact.engine_inputs
declare_outputs = exact.declare_outputs


class Config(Settings):
    borders: list[int] | None = None
    """The lengths, ascending; the last is `serve.max_length`. Default: chosen from the sample texts."""
    count: int = Field(default=4, ge=1, le=64)
    """How many borders to choose."""


def tokenizer_settings(
    config: Config, serve: ServeConfig, signature: Signature, lengths: Sequence[int], encoder: Any
) -> dict[str, object]:
    """Returns what the tokenizer's step must know.

    Raises:
        InputError: The recipe's borders are not ascending, or do not end with the longest text that is served.
    """
    if config.borders is None:
        return {"borders": with_last(choose(lengths, config.count), serve.max_length)}
    borders = config.borders
    if borders != sorted(set(borders)) or not borders or borders[0] < 1 or borders[-1] != serve.max_length:
        raise InputError(
            f"serve.lengths: must be ascending and end with serve.max_length ({serve.max_length}), got {borders}; "
            "correct the list, or leave it out to have it chosen"
        )
    return {"borders": borders}


def choose(lengths: Sequence[int], count: int) -> list[int]:
    """Returns at most `count` ascending borders, the last of them the longest of `lengths`, with the least padding."""
    values, counts = np.unique(np.asarray(lengths, np.int64), return_counts=True)
    texts = np.concatenate([[0], np.cumsum(counts)])
    # least[j]: the fewest tokens computed for the j shortest distinct lengths; `padding` is this minus a constant.
    least = values[np.arange(len(values))] * texts[1:]
    least = np.concatenate([[0], least])
    origins: list[list[int]] = []
    for _ in range(1, min(count, len(values))):
        better, origin = least.copy(), [0] * (len(values) + 1)
        for j in range(1, len(values) + 1):
            costs = least[:j] + values[j - 1] * (texts[j] - texts[:j])
            origin[j] = int(np.argmin(costs))
            better[j] = costs[origin[j]]
        least = better
        origins.append(origin)
    borders, j = [], len(values)
    for origin in reversed(origins):
        borders.append(int(values[j - 1]))
        j = origin[j]
        if j == 0:
            return borders[::-1]
    borders.append(int(values[j - 1]))
    return borders[::-1]


def with_last(borders: list[int], longest: int) -> list[int]:
    """Returns `borders` and `longest`, for the text that is longer than every sample."""
    return borders if borders[-1] == longest else [*borders, longest]


def waste(lengths: Sequence[int], borders: Sequence[int]) -> float:
    """Returns the share of padding among the tokens that are computed for texts of `lengths`, one a request."""
    widths = np.asarray(borders)[np.searchsorted(borders, lengths)]
    return float(1 - np.sum(lengths) / widths.sum())
