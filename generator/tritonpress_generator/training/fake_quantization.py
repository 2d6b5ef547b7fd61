"""Quantisation-aware training: linear layers compute with what will be left of weights and activations in INT8.

Rounding has no gradient; it is passed straight through (Bengio et al. 2013, "Estimating or propagating gradients
through stochastic neurons"; Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference"). Scales are as the graph pass `quantize` takes them (`quantization.py`): of weights
the largest of each output, of activations the range, here that of each batch, so that a training has no state but its
weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from tritonpress_generator.quantization import UINT8_MAX, symmetric_scale, uint8_parameters


def fake_quantized(values: torch.Tensor, scale: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Returns the values as their codes from `low` to `high` times `scale`; the gradient is that of the values within.

    Args:
        values: Of any shape.
        scale: Broadcasts to it; above 0.
        low: The smallest code.
        high: The largest code.
    """
    codes = (values / scale).clamp(low, high)
    return (codes + (codes.round() - codes).detach()) * scale


def fake_quantize(linears: Sequence[torch.nn.Linear], *, weight_codes: int) -> Callable[[], None]:
    """Makes `linears` compute with fake-quantised inputs and weights, in FP32, and returns what ends that.

    Args:
        linears: Layers of a model that is trained.
        weight_codes: The largest code of a weight, 63 for 7 bits, 127 for 8.
    """
    ends = [_one(linear, weight_codes) for linear in linears]

    def end() -> None:
        for one in ends:
            one()

    return end


def _one(linear: torch.nn.Linear, weight_codes: int) -> Callable[[], None]:
    def forward(values: torch.Tensor) -> torch.Tensor:
        # BF16 has 8 significant bits, and would round what 8-bit codes times a scale are.
        with torch.autocast(values.device.type, enabled=False):
            values = values.float()
            low, high = (float(end) for end in torch.aminmax(values.detach()))
            if not math.isfinite(high - low):  # the training refuses the loss that comes of it
                return torch.nn.functional.linear(values, linear.weight, linear.bias)
            of_values, zero_point = uint8_parameters(low, high)
            zero = float(zero_point)
            inputs = fake_quantized(values, _like(values, of_values), -zero, UINT8_MAX - zero)
            largest = linear.weight.detach().abs().amax(1, keepdim=True)
            of_weight = symmetric_scale(largest.cpu().numpy(), weight_codes)
            weight = fake_quantized(linear.weight, _like(values, of_weight), -weight_codes, weight_codes)
            return torch.nn.functional.linear(inputs, weight, linear.bias)

    linear.forward = forward  # type: ignore[method-assign, assignment]

    def end() -> None:
        del linear.forward

    return end


def _like(values: torch.Tensor, scale: object) -> torch.Tensor:
    """Returns scales as FP32 where the values are."""
    return torch.as_tensor(scale, dtype=torch.float32, device=values.device)
