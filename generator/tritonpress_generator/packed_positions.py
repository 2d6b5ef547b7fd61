"""Makes an encoder count the positions of packed sequences, of each from 0, whatever it would count by itself.

Encoders count positions over their whole input, each family in its own way: what they ask for is passed over, and they
are given what the layout says.
"""

from __future__ import annotations

from typing import Any

import torch

from tritonpress_generator.ragged_attention import current_layout


def count_within_sequences(model: torch.nn.Module) -> bool:
    """Changes every source of positions in `model`, and returns whether there was one that places the tokens."""
    children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    placed = False
    for parent, name, child in children:
        if name == "position_embeddings" and isinstance(child, torch.nn.Embedding):
            setattr(parent, name, _Absolute(child))
        elif name == "rotary_emb":
            setattr(parent, name, _Rotary(child))
        else:
            continue
        placed = True
    for module in model.modules():
        if hasattr(module, "compute_position_bias"):
            _share_relative_bias(module)
    return placed


class _Absolute(torch.nn.Module):
    """A table of position embeddings; RoBERTa's rows begin behind the padding's."""

    def __init__(self, table: torch.nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.first = 0 if table.padding_idx is None else table.padding_idx + 1

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding((current_layout().position + self.first)[None], self.table.weight)


class _Rotary(torch.nn.Module):
    """The angles by which queries and keys are turned."""

    def __init__(self, angles: torch.nn.Module) -> None:
        super().__init__()
        self.angles = angles

    def forward(self, states: torch.Tensor, position_ids: torch.Tensor, *layer_type: str) -> Any:
        return self.angles(states, current_layout().position[None], *layer_type)


def _share_relative_bias(module: Any) -> None:
    """Has relative positions counted over the longest sequence: the bias depends on them alone, and serves all."""
    bias = module.compute_position_bias
    module.compute_position_bias = lambda _: bias(current_layout().unpack[..., None])
