"""Exchanges an encoder's attention for one of this project's, where its family lets it be exchanged.

Most families of `transformers` call their attention by a name. MPNet adds a bias of relative positions inside its own:
it is given one that hands the bias on. The others (DeBERTa's disentangled attention, families written before the
registry) keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def exchange_attention(encoder: Any, attention: str) -> None:
    """Gives `encoder` the attention of the name `attention` in `transformers`' registry, if that can be done.

    Whether it was done, `encoder.config._attn_implementation` says.
    """
    if encoder.config.model_type == "mpnet":
        # One bias for all sequences, and not a copy for each.
        bias = encoder.encoder.compute_position_bias
        encoder.encoder.compute_position_bias = lambda states: bias(states[:1])
        for layer in encoder.encoder.layer:
            layer.attention.attn = _MPNetAttention(layer.attention.attn, ALL_ATTENTION_FUNCTIONS[attention])
        encoder.config._attn_implementation = attention
    elif encoder._can_set_attn_implementation():
        encoder.set_attn_implementation(attention)


class _MPNetAttention(torch.nn.Module):
    """`MPNetSelfAttention` with its own products, and an attention that is called as other families call theirs."""

    def __init__(self, own: Any, attention: Callable[..., Any]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = own.q, own.k, own.v, own.o
        self.head_size: int = own.attention_head_size
        self.attention = attention

    def forward(
        self, states: torch.Tensor, _: torch.Tensor | None, position_bias: torch.Tensor, **unused: Any
    ) -> tuple[torch.Tensor]:
        shape = states.shape[:-1]
        query, key, value = (
            linear(states).view(*shape, -1, self.head_size).transpose(1, 2) for linear in (self.q, self.k, self.v)
        )
        mixed, _ = self.attention(self, query, key, value, None, position_bias=position_bias)
        return (self.o(mixed.reshape(*shape, -1)),)
