"""Uniform affine quantisation: real = (code - zero_point) * scale, codes rounded to nearest and saturated.

The grid always holds 0 exactly, and saturation (never a wrap) keeps the largest value the largest. Inside the
calibrated range the error of a value is at most half a scale.
Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 2.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

UINT8_MAX = 255
INT8_MAX = 127
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


def quantize_int8_symmetric(values: NDArray[Any], *, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Returns the codes in -127..127 of `values`, and a scale for each index of `axis`.

    Args:
        values: FP32, any shape.
        axis: The axis that keeps its own scales; the largest magnitude along the others becomes 127.
    """
    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scale = np.maximum(largest / INT8_MAX, _SMALLEST_SCALE).astype(np.float32)
    codes = np.clip(np.round(values / scale), -INT8_MAX, INT8_MAX).astype(np.int8)
    return codes, scale.reshape(-1)
