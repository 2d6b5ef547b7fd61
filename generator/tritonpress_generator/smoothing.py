"""Moves what makes activations hard to quantise into the weights, channel by channel.

A few channels of a BERT's activations are an order of magnitude larger than the others, and one scale for all leaves
these a handful of codes. `x @ w` equals `(x / s) @ (s * w)` for any scale `s` a channel; weights, which have a scale
for each column, bear more. Source: Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization
for Large Language Models", equation 4; the strength is chosen for each product by the error that is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tritonpress_generator.quantization import (
    INT8_MAX,
    quantize_symmetric,
    quantize_uint8,
    symmetric_codes,
    symmetric_scale,
    uint8_parameters,
)

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""How much of an activation's range is moved: 0 nothing, 1 all of it."""
_WORTH = 0.5
"""The share of the error that must be taken away for one more pass over the activations."""
_SMALLEST_SHARE = 1e-3
"""Of the largest channel's range: a channel that was hardly seen may yet be used."""
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Observed:
    """The values that an activation of `channels` channels takes."""

    low: Floats
    """`(channels,)`; likewise `high`."""
    high: Floats
    rows: Floats
    """Some of its tokens, `(tokens, channels)`."""

    def parameters(self, scales: Floats, largest: float = math.inf) -> tuple[np.float32, np.uint8]:
        """Returns the scale and zero point of the whole, each channel divided by its own of `scales`.

        Magnitudes beyond `largest` are clipped.
        """
        low, high = float((self.low / scales).min()), float((self.high / scales).max())
        return uint8_parameters(max(low, -largest), min(high, largest))

    def largest(self, scales: Floats) -> float:
        """Returns the largest magnitude, each channel divided by its own of `scales`."""
        return float((np.maximum(-self.low, self.high) / scales).max())

    def rounded(self, scales: Floats) -> Floats:
        """Returns `rows`, divided by `scales`, as unsigned codes of 8 bits give them."""
        scale, zero_point = self.parameters(scales)
        codes = quantize_uint8(self.rows / scales, scale, zero_point).astype(np.float32)
        rows: Floats = (codes - np.float32(zero_point)) * scale
        return rows

    def rounded_symmetric(self, scales: Floats) -> Floats:
        """Returns `rows`, divided by `scales`, as signed codes of 8 bits give them."""
        scale = symmetric_scale(np.array(self.largest(scales)), INT8_MAX)
        rows: Floats = symmetric_codes(self.rows / scales, scale, INT8_MAX) * scale
        return rows


def together(observed: Sequence[Observed]) -> Observed:
    """Returns what several activations of as many channels take."""
    low, high, rows = zip(*((one.low, one.high, one.rows) for one in observed), strict=True)
    return Observed(np.min(low, axis=0), np.max(high, axis=0), np.concatenate(rows))


def channel_scales(observed: Observed, weight: Floats, *, largest_code: int, symmetric: bool = False) -> Floats | None:
    """Returns what each channel of an activation is divided by, or None where that is not worth a pass over it.

    Args:
        observed: The activation.
        weight: `(channels, columns)`, by which it is multiplied.
        largest_code: Of the quantised weights.
        symmetric: Whether the activation's codes are signed, with 0 for 0.
    """
    exact = observed.rows @ weight

    def error(scales: Floats) -> float:
        rows = observed.rounded_symmetric(scales) if symmetric else observed.rounded(scales)
        weights, of_columns = quantize_symmetric(weight * scales[:, None], axis=1, largest_code=largest_code)
        return float(np.square(rows @ (weights * of_columns) - exact).mean())

    candidates = [_scales(observed, weight, strength) for strength in STRENGTHS]
    errors = [error(scales) for scales in candidates]
    best = int(np.argmin(errors))
    return candidates[best] if errors[best] < _WORTH * error(np.ones(len(weight), np.float32)) else None


def _scales(observed: Observed, weight: Floats, strength: float) -> Floats:
    """Returns the scales that move `strength` of the activation's range into the weights."""
    of_activation = _not_too_small(np.maximum(-observed.low, observed.high))
    of_weight = _not_too_small(np.abs(weight).max(axis=1))
    logs = strength * np.log(of_activation) - (1 - strength) * np.log(of_weight)
    scales: Floats = np.exp(logs - logs.mean()).astype(np.float32)
    return scales


def _not_too_small(ranges: Floats) -> NDArray[np.float64]:
    floor = max(_SMALLEST_SHARE * float(ranges.max()), 1e-30)
    return np.maximum(ranges.astype(np.float64), floor)
