"""A `transformers` task model divided into its encoder and its head, so that the head can be asked on its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tritonpress_generator.errors import InputError
from tritonpress_generator.packed_layout import Layout
from tritonpress_generator.token_states import token_states

_TOLERANCE = 1e-4


class _Given(torch.nn.Module):
    """Stands in for the encoder: hands on states that are already there, and what its pooler makes of them."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        pooler = getattr(encoder, "pooler", None)
        # ALBERT's is the linear layer alone.
        activation = getattr(encoder, "pooler_activation", None)
        self.pooler = torch.nn.Sequential(pooler, activation) if pooler and activation else pooler
        self.of_first = bool(activation)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        states = input_ids  # the name by which some models give their encoder what they are given
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

    def check(self, model: Any) -> None:
        """Refuses a model whose answers are not those of its parts.

        Raises:
            InputError: `model` makes its answers of the states in a way that is not known here.
        """
        config = self.encoder.config
        if config._attn_implementation.startswith("tritonpress"):
            return  # that of an export, which is held to a model that was checked
        rows = self.encoder.get_input_embeddings().num_embeddings
        tokens = torch.arange(3, 15, device=model.device).reshape(2, 6) % rows
        mask = torch.ones_like(tokens)
        mask[1, 4:] = 0
        present = mask.bool()
        try:
            with torch.inference_mode():
                pairs = zip(
                    _listed(self._answers(model(input_ids=tokens, attention_mask=mask))),
                    _listed(self(tokens, mask)),
                    strict=True,
                )
            same = all(_close(*(t[present] if t.shape == mask.shape else t for t in pair)) for pair in pairs)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            same = False
        if not same:
            raise InputError(
                f"checkpoint: {type(model).__name__} must answer from its encoder's last states (each token's, the "
                "first one's, or the mean of all), and does not; give one of BERT's family"
            )

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
    """A head that answers every sequence, from its first token's state or from all of them."""

    def __init__(self, model: Any, answers: Callable[[Any], torch.Tensor | tuple[torch.Tensor, ...]]) -> None:
        super().__init__(model, answers)
        self.pooling: str = getattr(model.config, "classifier_pooling", "cls")
        """`mean`: of the states; `late`: the mean of what every token is answered (EuroBERT); else the first."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *segments: torch.Tensor) -> Any:
        states = self.states(input_ids, attention_mask, *segments)
        if self.pooling == "mean":
            return self._of_vectors(_means(states, attention_mask))
        if self.pooling == "late":
            of_tokens = self._of_vectors(states.flatten(0, 1))
            return _means(of_tokens.reshape(*states.shape[:2], -1), attention_mask)
        return self._of_vectors(states[:, 0])

    def packed_outputs(self, states: torch.Tensor, layout: Layout) -> Any:
        """Returns `(sequences, width)` for the packed `(tokens, width)`."""
        if self.pooling == "mean":
            return self._of_vectors(layout.means(states))
        if self.pooling == "late":
            return layout.means(self._of_vectors(states))
        return self._of_vectors(states[layout.starts])

    def _of_vectors(self, vectors: torch.Tensor) -> Any:
        """Returns the head's answers for `(vectors, width)`."""
        # Each is a sequence of its own: the head's pooling, whichever it is, leaves it as it is.
        return self.of_states(vectors[:, None])


def _listed(answers: Any) -> tuple[torch.Tensor, ...]:
    return answers if isinstance(answers, tuple) else (answers,)


def _close(answer: torch.Tensor, other: torch.Tensor) -> bool:
    """Returns whether both are the same but for rounding; NaN is not."""
    return bool((answer - other).abs().max() <= _TOLERANCE * max(1.0, float(answer.abs().max())))


def _means(values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Returns the means over the tokens that are there, `(batch, width)` for `(batch, seq, width)`."""
    weights = attention_mask.to(values.dtype)
    return torch.matmul(weights.unsqueeze(1), values).squeeze(1) / weights.sum(1, keepdim=True)
