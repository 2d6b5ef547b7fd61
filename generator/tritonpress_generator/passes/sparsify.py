"""Sets the weights of the smallest magnitude to 0, anywhere or two of every four.

Source: Han et al. 2015, "Learning both weights and connections"; for 2:4, Mishra et al. 2021, "Accelerating sparse deep
neural networks": the two largest of every four weights in a row that make one output stay, which NVIDIA's sparse tensor
cores compute faster (`engine: {tensorrt: {sparsity: true}}`). Zeros anywhere make no engine here faster and no engine
smaller. It is the magnitude that counts: large negative weights are large.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator

from tritonpress_generator.compression import Compressed, Material, copied
from tritonpress_generator.errors import InputError
from tritonpress_generator.pretrained import encoder_of
from tritonpress_generator.recipe_text import Settings

_OF_FOUR = 4


class Config(Settings):
    share: float | None = Field(default=None, gt=0, lt=1)
    """The share of the encoder's linear weights that becomes 0."""
    scope: Literal["global", "layer"] = "global"
    """Whether the smallest of all weights go, or of each linear layer the same share."""
    pattern: Literal["2:4"] | None = None
    """In place of a share: two of every four."""

    @model_validator(mode="after")
    def _says_which(self) -> Config:
        if (self.share is None) == (self.pattern is None):
            raise ValueError("give share, or pattern")
        return self


def apply(given: Compressed, config: Config, material: Material) -> Compressed:
    """Returns the model with the smallest weights of the encoder's linear layers at 0.

    Args:
        given: Is left as it is.
        config: The settings.
        material: Has the held-out examples, if the recipe names any.

    Raises:
        InputError: The pattern does not divide a layer's inputs, or a held-out example cannot be read.
    """
    result = copied(given)
    linears = [part for part in encoder_of(result.model).modules() if isinstance(part, torch.nn.Linear)]
    with torch.no_grad():
        if config.pattern is not None:
            kept = [two_of_four(linear.weight) for linear in linears]
        elif config.scope == "layer":
            kept = [largest(linear.weight.abs(), 1 - (config.share or 0)) for linear in linears]
        else:
            together = torch.cat([linear.weight.abs().flatten() for linear in linears])
            sizes = [linear.weight.numel() for linear in linears]
            parts = torch.split(largest(together, 1 - (config.share or 0)), sizes)
            kept = [part.reshape(linear.weight.shape) for part, linear in zip(parts, linears, strict=True)]
        for linear, mask in zip(linears, kept, strict=True):
            linear.weight.mul_(mask)
    weights = sum(linear.weight.numel() for linear in linears)
    zeros = sum(int((linear.weight == 0).sum()) for linear in linears)
    report = {"zeros": zeros / weights, "pattern": config.pattern}
    history = (*given.history, f"sparsify {config.model_dump_json()}")
    chosen = result.chosen if material.recipe.data is None else material.chosen(result.model, result.tokenizer)
    return replace(result, report=result.report | {"sparsify": report}, history=history, chosen=chosen)


def largest(magnitudes: torch.Tensor, share: float) -> torch.Tensor:
    """Returns which of `magnitudes` are among the largest `share` of them, BOOL of their shape."""
    count = round(share * magnitudes.numel())
    kept = torch.zeros(magnitudes.numel(), dtype=torch.bool)
    kept[magnitudes.flatten().argsort(descending=True, stable=True)[:count]] = True
    return kept.reshape(magnitudes.shape)


def two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """Returns the two of the largest magnitude of every four in a row, BOOL `(outputs, inputs)`.

    Raises:
        InputError: The inputs are no multiple of four.
    """
    if weight.shape[1] % _OF_FOUR:
        raise InputError(
            f"passes.sparsify: pattern: 2:4 needs layers whose inputs are a multiple of 4, one has {weight.shape[1]}; "
            "prune in blocks of 4, or leave it out"
        )
    fours = weight.abs().reshape(-1, _OF_FOUR)
    order = fours.argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(fours, dtype=torch.bool).scatter(1, order[:, :2], True)
    return kept.reshape(weight.shape)
