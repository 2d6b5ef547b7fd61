"""A `transformers` task model divided into its encoder and its head, so that the head can be asked on its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tritonpress_generator.packed_layout import Layout
from tritonpress_generator.token_states import token_states


class _Given(torch.nn.Module):
    """Stands in for the encoder: hands on states that are already there, and what its pooler makes of them."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        pooler = getattr(encoder, "pooler", None)
        # ALBERT's is the linear layer alone.
        activation = getattr(encoder, "pooler_activation", None)
        self.pooler = torch.nn.Sequential(pooler, activation) if pooler and activation else pooler
        self.of_first = bool(activation)

    def forward(self, states: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        pooled = None if self.pooler is None else self.pooler(states[:, 0] if self.of_first else states)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)


class TaskHead(torch.nn.Module):
    """A `transformers` task model: INT64 `(batch, seq)` ids, mask and, if it reads them, segment ids to its answers.

    `states` and `packed_outputs` are what the ragged form needs of it (`ragged.Packed`).
    """

    def __init__(self, model: Any, answers: Callable[[Any], torch.Tensor | tuple[torch.Tensor, ...]]) -> None:
        """Divides `model`, which stays as it is and shares its weights.

        Args:
            model: Of `transformers`, with a head that reads the encoder's states, or, in a head that answers a
                sequence, the first of them or their mean.
            answers: Takes what the model's `forward` returns apart.
        """
        super().__init__()
        self.encoder = getattr(model, model.base_model_prefix)
        self.head = copy.copy(model)
        self.head._modules = model._modules | {model.base_model_prefix: _Given(self.encoder)}
        self._answers = answers

    def states(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Returns a vector a token, FP32 `(batch, seq, width)`."""
        return token_states(self.encoder, *inputs)

    def of_states(self, states: torch.Tensor) -> Any:
        """Returns the head's answers for states `(batch, seq, width)`."""
        return self._answers(self.head(states))


class TokenHead(TaskHead):
    """A head that answers every token."""

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.of_states(self.states(*inputs))

    def packed_outputs(self, states: torch.Tensor, layout: Layout) -> Any:
        """Returns values `(tokens,)` for the packed `(tokens, width)`."""
        answers = self.of_states(states[None])
        return tuple(answer[0] for answer in answers)


class SequenceHead(TaskHead):
    """A head that answers every sequence, from its first token's state or from their mean."""

    def __init__(self, model: Any, answers: Callable[[Any], torch.Tensor | tuple[torch.Tensor, ...]]) -> None:
        super().__init__(model, answers)
        self.mean = getattr(model.config, "classifier_pooling", "cls") == "mean"

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *segments: torch.Tensor) -> Any:
        states = self.states(input_ids, attention_mask, *segments)
        if self.mean:
            weights = attention_mask.to(states.dtype)
            pooled = torch.matmul(weights.unsqueeze(1), states) / weights.sum(1)[:, None, None]
        else:
            pooled = states[:, :1]
        # One state a sequence: the head's own pooling, by the first or by the mean, leaves it as it is.
        return self.of_states(pooled)

    def packed_outputs(self, states: torch.Tensor, layout: Layout) -> Any:
        """Returns `(sequences, width)` for the packed `(tokens, width)`."""
        pooled = layout.means(states) if self.mean else states[layout.starts]
        return self.of_states(pooled[:, None])
