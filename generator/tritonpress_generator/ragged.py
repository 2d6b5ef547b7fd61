"""The ragged form of the export: sequences of all lengths packed behind one another, with no padding between them.

The graph takes `input_ids`, INT64 `(tokens,)` over all sequences, and `lengths`, INT64 `(sequences,)`; for pairs also
`token_type_ids`, INT64 `(tokens,)`. Everything but attention works on packed tokens, as one sequence of all of them;
where each sequence begins, and every token's position in its own, the graph works out from `lengths`.

The lengths are an input, and not Triton's accumulated element counts, since those count a request as one sequence: a
client's batch has several (`batch_input` in Triton's model configuration).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch

from tritonpress_generator import export as padded
from tritonpress_generator import ragged_attention
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.packed_layout import Layout
from tritonpress_generator.packed_positions import count_within_sequences
from tritonpress_generator.signature import SEGMENTS, Signature

ATTENTION = ragged_attention.ATTENTION
_TOLERANCE = 1e-4
"""How far a sequence's answer may be from what it is alone; rounding is far below, a neighbour's influence above."""


class Packed(torch.nn.Module):
    """A task's model on packed sequences: INT64 `(tokens,)` ids and `(sequences,)` lengths to the ragged outputs.

    The model has, beside `forward`, which is of the padded form:

    - `encoder`: the `transformers` encoder;
    - `states(input_ids, attention_mask)`, with `token_type_ids` where its signature has segments: INT64 `(batch, seq)`
      to its token vectors, FP32 `(batch, seq, width)`;
    - `packed_outputs(states, layout)`: the packed token vectors `(tokens, width)` and where they lie to a tensor or, of
      several outputs, a tuple of tensors, in the ragged shapes of `Output`.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Takes `model` over.

        Raises:
            InputError: The encoder's attention is of its own making, or it has positions that are not known here.
        """
        super().__init__()
        self.model = model
        config: Any = model.encoder.config  # type: ignore[union-attr]
        if config._attn_implementation != ATTENTION or not count_within_sequences(model):
            raise InputError(
                "serve.lengths: ragged needs an encoder with exchangeable attention and absolute, rotary or MPNet's "
                f"positions, {config.model_type} has not; pad instead"
            )

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor, *segments: torch.Tensor) -> Any:
        layout = Layout.of(lengths, input_ids)
        with ragged_attention.laid_out(layout):
            one_row = [tensor[None] for tensor in (input_ids, torch.ones_like(input_ids), *segments)]
            states = self.model.states(*one_row)  # type: ignore[operator]
            return self.model.packed_outputs(states[0], layout)  # type: ignore[operator]


def inputs(signature: Signature) -> tuple[str, ...]:
    """Returns the names of what the graph reads, all INT64."""
    return ("input_ids", "lengths", SEGMENTS) if signature.segments else ("input_ids", "lengths")


def export(model: torch.nn.Module, signature: Signature) -> onnx.ModelProto:
    """Returns the ragged ONNX form of `model`, which is changed by it.

    Args:
        model: A task's head, as `Packed` takes it, on an encoder that was loaded with the attention `ATTENTION`.
        signature: What it reads and gives.

    Raises:
        InputError: The encoder cannot be packed, or has an operator that the exporter cannot express.
    """
    names = inputs(signature)
    tokens = torch.ones(12, dtype=torch.int64)
    example = tuple(torch.tensor([5, 7], dtype=torch.int64) if name == "lengths" else tokens for name in names)
    axes = {name: {0: "sequences" if name == "lengths" else "tokens"} for name in names}
    axes |= {n: {0: "tokens" if o.width is None else "sequences"} for n, o in signature.outputs.items()}
    packed_model = Packed(model)
    _check_neighbours(packed_model, signature)
    return padded.traced(packed_model, example, names, signature, axes, ragged_attention.functions())


def _check_neighbours(model: Packed, signature: Signature) -> None:
    """Refuses an encoder that mixes a token with those beside it in another way than attention."""
    encoder: Any = model.model.encoder
    lengths = [5, 7]
    ids = torch.arange(3, 3 + sum(lengths)) % encoder.get_input_embeddings().num_embeddings

    def answers(ids: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, ...]:
        segments = [torch.zeros_like(ids)] if signature.segments else []
        tensors = model(ids, torch.tensor(lengths), *segments)
        return tensors if isinstance(tensors, tuple) else (tensors,)

    with torch.inference_mode():
        alone = [answers(part, [len(part)]) for part in ids.split(lengths)]
        for together, *parts in zip(answers(ids, lengths), *alone, strict=True):
            difference = (together - torch.cat(parts)).abs().max()
            # Written so that NaN fails too.
            if not difference <= _TOLERANCE * max(1.0, float(together.abs().max())):
                raise InputError(
                    "serve.lengths: ragged needs an encoder whose tokens meet in attention alone, "
                    f"{encoder.config.model_type} mixes neighbours elsewhere too; pad instead"
                )


def as_padded(infer: Infer, signature: Signature) -> Infer:
    """Returns the ragged `infer` as one of the padded form; what it answers at padding is 0."""

    def asked(feed: Mapping[str, Array]) -> dict[str, Array]:
        answers = infer(packed(feed, signature))
        mask = feed["attention_mask"].astype(bool)
        for name, output in signature.outputs.items():
            if output.width is None:
                of_tokens, answers[name] = answers[name], np.zeros(mask.shape, np.float32)
                answers[name][mask] = of_tokens
        return answers

    return asked


def packed(feed: Mapping[str, Array], signature: Signature) -> dict[str, Array]:
    """Returns a padded batch as the inputs of the ragged graph."""
    mask = feed["attention_mask"].astype(bool)
    return {name: mask.sum(1, dtype=np.int64) if name == "lengths" else feed[name][mask] for name in inputs(signature)}
