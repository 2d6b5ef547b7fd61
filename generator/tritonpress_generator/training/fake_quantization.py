"""Quantisation-aware training: linear layers compute with what will be left of weights and activations in INT8.

Rounding has no gradient; it is passed straight through (Bengio et al. 2013, "Estimating or propagating gradients
through stochastic neurons"; Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference"). Scales are as the graph pass `quantize` takes them (`quantization.py`): of weights
the largest of each output, of activations the range, here that of each batch, so that a training has no state but its
weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

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


def fake_quantize(model: torch.nn.Module, *, weight_codes: int) -> Callable[[], None]:
    """Makes the linear layers of `model` compute with fake-quantised inputs and weights, in FP32.

    A layer with an adapter computes with the weights that it will have when that is merged into them, as it is served.

    Args:
        model: What is trained.
        weight_codes: The largest code of a weight, 63 for 7 bits, 127 for 8.

    Returns:
        What ends that.
    """
    adapted: list[Any] = [part for part in model.modules() if hasattr(part, "get_delta_weight")]
    inner = {id(part) for layer in adapted for part in layer.modules()}
    linears = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and id(part) not in inner]
    ends = [_one(layer, layer.base_layer, weight_codes, adapter=layer) for layer in adapted]
    ends += [_one(linear, linear, weight_codes) for linear in linears]

    def end() -> None:
        for one in ends:
            one()

    return end


def _one(called: Any, linear: torch.nn.Linear, weight_codes: int, adapter: Any = None) -> Callable[[], None]:
    """Replaces what `called` computes, which is `linear` with `adapter` on it; returns what ends that."""

    def own() -> torch.Tensor:
        weight: torch.Tensor = linear.weight
        for name in [] if adapter is None else adapter.active_adapters:
            weight = weight + adapter.get_delta_weight(name)
        return weight

    def forward(values: torch.Tensor) -> torch.Tensor:
        # BF16 has 8 significant bits, and would round what 8-bit codes times a scale are.
        with torch.autocast(values.device.type, enabled=False):
            values, weight = values.float(), own()
            low, high = (float(end) for end in torch.aminmax(values.detach()))
            if not math.isfinite(high - low):  # the training refuses the loss that comes of it
                return torch.nn.functional.linear(values, weight, linear.bias)
            of_values, zero_point = uint8_parameters(low, high)
            zero = float(zero_point)
            inputs = fake_quantized(values, _like(values, of_values), -zero, UINT8_MAX - zero)
            largest = weight.detach().abs().amax(1, keepdim=True)
            of_weight = symmetric_scale(largest.cpu().numpy(), weight_codes)
            weight = fake_quantized(weight, _like(values, of_weight), -weight_codes, weight_codes)
            return torch.nn.functional.linear(inputs, weight, linear.bias)

    called.forward = forward

    def end() -> None:
        del called.forward

    return end


def _like(values: torch.Tensor, scale: object) -> torch.Tensor:
    """Returns scales as FP32 where the values are."""
    return torch.as_tensor(scale, dtype=torch.float32, device=values.device)
