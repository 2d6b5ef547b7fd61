"""Quantisation-aware training: linear layers compute with what will be left of weights and activations in INT8.

Rounding has no gradient; it is passed straight through (Bengio et al. 2013, "Estimating or propagating gradients
through stochastic neurons"; Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference"). Scales are as the graph pass `quantize` takes them: of weights the largest of each
output, of activations the range, here that of each batch, so that a training has no state but its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

_ACTIVATION_CODES = 255


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
    """Makes `linears` compute with fake-quantised inputs and weights, and returns what ends that.

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
    tiny = torch.finfo(torch.float32).tiny

    def forward(values: torch.Tensor) -> torch.Tensor:
        values = values.float()
        # 0 is in the range: what activation functions leave out is exactly that.
        low, high = values.detach().min().clamp(max=0), values.detach().max().clamp(min=0)
        scale = ((high - low) / _ACTIVATION_CODES).clamp(min=tiny)
        zero = torch.round(-low / scale)
        inputs = fake_quantized(values, scale, float(-zero), float(_ACTIVATION_CODES - zero))
        largest = linear.weight.detach().abs().amax(1, keepdim=True).clamp(min=tiny)
        weight = fake_quantized(linear.weight, largest / weight_codes, -weight_codes, weight_codes)
        return torch.nn.functional.linear(inputs, weight, linear.bias)

    linear.forward = forward  # type: ignore[method-assign, assignment]

    def end() -> None:
        del linear.forward

    return end
