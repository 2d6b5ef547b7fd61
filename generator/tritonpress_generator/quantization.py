"""Uniform affine quantisation: real = (code - zero_point) * scale, codes rounded to nearest and saturated.

The grid always holds 0 exactly, and saturation (never a wrap) keeps the largest value the largest. In the calibrated
range the error of a value is at most half a scale, at its ends too: the rounded zero point moves the grid by half a
scale at most, and what lies beyond its end saturates there.
Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 2.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

UINT8_MAX = 255
INT8_MAX = 127
INT16_MAX = 32767
INT7_MAX = 63
"""Of weights that no product saturates: without VNNI a CPU adds two products of a UINT8 and an INT8 in 16 bits
(VPMADDUBSW), which hold 2 · 255 · 64 at most."""
_SMALLEST_SCALE = 1e-30
"""Keeps a range of nothing but zeros from dividing by 0, and what lies beyond it from overflowing FP32."""


def uint8_parameters(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Returns the scale and zero point of the asymmetric 8-bit grid over `[min(low, 0), max(high, 0)]`."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max((high - low) / UINT8_MAX, _SMALLEST_SCALE))
    return scale, np.uint8(np.clip(np.round(-low / float(scale)), 0, UINT8_MAX))


def quantize_uint8(values: NDArray[Any], scale: np.float32, zero_point: np.uint8) -> NDArray[np.uint8]:
    """Returns the codes of `values` on an asymmetric 8-bit grid."""
    codes = np.clip(np.round(values / scale) + np.float32(zero_point), 0, UINT8_MAX)
    return np.asarray(codes, np.uint8)


def quantize_symmetric(
    values: NDArray[Any], *, axis: int, largest_code: int = INT8_MAX, power_of_two: bool = False
) -> tuple[NDArray[np.int8] | NDArray[np.int16], NDArray[np.float32]]:
    """Returns the codes of `values`, INT8 where that holds `largest_code` and else INT16, and a scale for each index.

    Args:
        values: FP32, any shape.
        axis: The axis that keeps its own scales.
        largest_code: What the largest magnitude along the other axes becomes; at most 32767.
        power_of_two: Whether scales are powers of two, of which the next larger one is taken.
    """
    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    scale = symmetric_scale(np.abs(values).max(axis=others, keepdims=True), largest_code, power_of_two=power_of_two)
    kind = np.int8 if largest_code <= INT8_MAX else np.int16
    codes: NDArray[Any] = symmetric_codes(values, scale, largest_code).astype(kind)
    return codes, scale.reshape(-1)


def symmetric_codes(values: NDArray[Any], scale: NDArray[np.float32], largest_code: int) -> NDArray[np.float32]:
    """Returns the codes of `values`, from minus to plus `largest_code`, as FP32; `scale` broadcasts to them."""
    codes: NDArray[np.float32] = np.clip(np.round(values / scale), -largest_code, largest_code)
    return codes


def quantize_blocks(
    weight: NDArray[np.float32], *, bits: int, block_size: int, symmetric: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Returns unsigned codes of a matrix whose rows are divided into blocks, with a scale and a zero point for each.

    Args:
        weight: FP32 `(rows, columns)`.
        bits: Of a code, at most 8.
        block_size: The rows of a block; the last one is filled up with the code of 0.
        symmetric: Whether the zero point is the middle of the codes; else it is where the block's range wants it.

    Returns:
        Codes `(columns, blocks, block_size)`, scales and zero points `(columns, blocks)`.
    """
    rows, columns = weight.shape
    filled = np.pad(weight, ((0, -rows % block_size), (0, 0)))
    blocks = np.ascontiguousarray(filled.T).reshape(columns, -1, block_size)
    most, middle = 2**bits - 1, 2 ** (bits - 1)
    if symmetric:
        scales = symmetric_scale(np.abs(blocks).max(-1), middle - 1)
        zero_points = np.full(scales.shape, middle, np.uint8)
    else:
        low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
        # Halves, since the whole range of two large numbers may be beyond FP32.
        scales = symmetric_scale(high / 2 - low / 2, most) * np.float32(2)
        zero_points = np.clip(np.round(-low / scales), 0, most).astype(np.uint8)
    codes = np.round(blocks / scales[..., None]) + zero_points[..., None]
    return np.clip(codes, 1 if symmetric else 0, most).astype(np.uint8), scales, zero_points


def symmetric_scale(largest: NDArray[Any], largest_code: float, *, power_of_two: bool = False) -> NDArray[np.float32]:
    """Returns the scales by which magnitudes of up to `largest` have codes of up to `largest_code`, 0 being 0."""
    scale: NDArray[np.float32] = np.maximum(largest / largest_code, _SMALLEST_SCALE).astype(np.float32)
    if power_of_two:
        mantissa, exponent = np.frexp(scale)
        # The mantissa is in [0.5, 1): it is 0.5 where the scale is a power of two already.
        scale = np.ldexp(np.float32(1), exponent - (mantissa == 0.5)).astype(np.float32)
    return scale
