"""The encoder's answer, a vector a token, whatever its family reads beside the token ids."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from tritonpress_generator.signature import SEGMENTS


def token_states(
    encoder: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the encoder's last states, FP32 `(batch, seq, width)`.

    Args:
        encoder: A `transformers` encoder.
        input_ids: INT64 `(batch, seq)`.
        attention_mask: INT64 `(batch, seq)`, 1 where a token is.
        token_type_ids: INT64 `(batch, seq)`; default: all of the first segment. Only for one that `reads_segments`.
    """
    segments = {} if token_type_ids is None else {SEGMENTS: token_type_ids}
    if token_type_ids is None and SEGMENTS in inspect.signature(encoder.forward).parameters:
        # Said explicitly, since the encoder would look its zeros up with a dozen operators more.
        segments = {SEGMENTS: torch.zeros_like(input_ids)}
    states: torch.Tensor = encoder(input_ids=input_ids, attention_mask=attention_mask, **segments).last_hidden_state
    return states


def reads_segments(encoder: Any) -> bool:
    """Returns whether the encoder tells the texts of a pair apart by segment ids; RoBERTa and its kin have one only."""
    takes = SEGMENTS in inspect.signature(encoder.forward).parameters
    return takes and getattr(encoder.config, "type_vocab_size", 0) > 1
