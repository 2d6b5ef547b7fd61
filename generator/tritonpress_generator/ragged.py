"""The ragged form of the export: sequences of all lengths packed behind one another, with no padding between them.

The graph takes `input_ids`, INT64 `(tokens,)` over all sequences, and `lengths`, INT64 `(sequences,)`; for pairs also
`token_type_ids`, INT64 `(tokens,)`. Everything but attention works on packed tokens, as one sequence of all of them;
where each sequence begins, and every token's position in its own, the graph works out from `lengths`. Attention is a
function of the model, `tritonpress.RaggedAttention`, whose body is plain operators; `fuse` knows a form that computes
no padding.

The lengths are an input, and not Triton's accumulated element counts, since those count a request as one sequence: a
client's batch has several (`batch_input` in Triton's model configuration).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from transformers import AttentionInterface

from tritonpress_generator import export as padded
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.packed_layout import Layout
from tritonpress_generator.signature import SEGMENTS, Signature

ATTENTION = "tritonpress_ragged_attention"


class _Attention(torch.autograd.Function):
    """Attention within each of the packed sequences, that exports as one node."""

    @staticmethod
    def forward(
        _: Any, query: Any, key: Any, value: Any, lengths: Any, unpack: Any, bias: Any, pack: Any, *settings: Any
    ) -> Any:
        scale, _heads = settings

        def unpacked(tensor: Any) -> Any:
            return tensor[0, :, unpack].transpose(0, 1)

        answer = torch.nn.functional.scaled_dot_product_attention(
            unpacked(query), unpacked(key), unpacked(value), attn_mask=bias[:, None], scale=scale
        )
        return answer.transpose(1, 2).flatten(0, 1)[pack][None]

    @staticmethod
    def symbolic(g: Any, *arguments: Any) -> Any:
        *inputs, scale, heads = arguments
        answer = g.op(f"{padded.DOMAIN}::RaggedAttention", *inputs, scale_f=scale, num_heads_i=heads)
        return answer.setType(torch._C.TensorType.get().with_dtype(torch.float32).with_sizes([1, None, heads, None]))


_layout: list[Layout] = []


def _attention_forward(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Answers `(1, tokens, heads, head_size)` for tensors of `(1, heads, tokens, head_size)`."""
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    at = _layout[-1]
    answer = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, at.lengths, at.unpack, at.bias, at.pack, float(scale), int(query.shape[1])
    )
    return answer, None


AttentionInterface.register(ATTENTION, _attention_forward)


class _Positions(torch.nn.Module):
    """A table of position embeddings that is asked for the packed positions, whatever the encoder asks it for.

    Encoders count positions over their whole input, each family in its own way; RoBERTa's begin behind the padding's.
    """

    def __init__(self, table: torch.nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.first = 0 if table.padding_idx is None else table.padding_idx + 1

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        position = _layout[-1].position
        return torch.nn.functional.embedding((position + self.first)[None], self.table.weight)


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
            InputError: The encoder has no table of absolute positions, or an attention of its own making.
        """
        super().__init__()
        self.model = model
        tables = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if name == "position_embeddings" and isinstance(child, torch.nn.Embedding)
        ]
        config: Any = model.encoder.config  # type: ignore[union-attr]
        if len(tables) != 1 or config._attn_implementation != ATTENTION:
            raise InputError(
                "serve.lengths: ragged needs an encoder with absolute positions and exchangeable attention, "
                f"{config.model_type} has not; pad instead"
            )
        parent, name, table = tables[0]
        setattr(parent, name, _Positions(table))

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor, *segments: torch.Tensor) -> Any:
        _layout.append(Layout.of(lengths, input_ids))
        try:
            one_row = [tensor[None] for tensor in (input_ids, torch.ones_like(input_ids), *segments)]
            states = self.model.states(*one_row)  # type: ignore[operator]
            return self.model.packed_outputs(states[0], _layout[-1])  # type: ignore[operator]
        finally:
            _layout.pop()


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
    graph = padded.traced(Packed(model), example, names, signature, axes, _attention_function())
    graph.graph.input.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.INT8, [name]) for name in row_elements(signature)
    )
    return graph


def source_inputs(signature: Signature) -> dict[str, str]:
    """Returns, for each output, the input that has as many elements, by whose shape Triton gives it back.

    One value a token is of the shape of the tokens, one value a sequence of the shape of the lengths. A row has no
    input of its shape but one that is made for it, which the graph does not read.
    """
    kinds = {None: "input_ids", 1: "lengths"}
    return {name: kinds.get(output.width, f"{name}_elements") for name, output in signature.outputs.items()}


def row_elements(signature: Signature) -> dict[str, int]:
    """Returns the inputs, INT8, that the graph does not read, and how many elements a sequence has in each."""
    sources = source_inputs(signature)
    widths = {name: output.width for name, output in signature.outputs.items()}
    return {sources[name]: width for name, width in widths.items() if width is not None and width != 1}


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
    names = inputs(signature)
    tensors = {name: mask.sum(1, dtype=np.int64) if name == "lengths" else feed[name][mask] for name in names}
    return tensors | {name: np.zeros(len(mask) * n, np.int8) for name, n in row_elements(signature).items()}


def _attention_function() -> onnx.FunctionProto:
    """Returns `tritonpress.RaggedAttention` in plain operators: unpacked to a padded batch, attended, packed again.

    Inputs: query, key, value `(1, heads, tokens, head_size)`, FP32; lengths, unpack, bias, pack as in `Layout`.
    Output: `(1, tokens, heads, head_size)`, FP32.
    """
    node = helper.make_node
    scale = node("Constant", [], ["scale"])
    scale.attribute.append(
        onnx.AttributeProto(name="value_float", ref_attr_name="scale", type=onnx.AttributeProto.FLOAT)
    )
    body = [
        scale,
        node("Constant", [], ["first"], value_ints=[0]),
        node("Constant", [], ["flat"], value_ints=[-1]),
    ]
    # (heads, sequences, longest, head_size)
    for name in ("query", "key", "value"):
        body += [
            node("Squeeze", [name, "first"], [f"{name}_packed"]),
            node("Gather", [f"{name}_packed", "unpack"], [f"{name}_rows"], axis=1),
        ]
    body += [
        node("Transpose", ["key_rows"], ["key_transposed"], perm=[0, 1, 3, 2]),
        node("MatMul", ["query_rows", "key_transposed"], ["products"]),
        node("Mul", ["products", "scale"], ["scaled"]),
        node("Add", ["scaled", "bias"], ["biased"]),
        node("Softmax", ["biased"], ["weights"], axis=-1),
        node("MatMul", ["weights", "value_rows"], ["mixed"]),
        node("Transpose", ["mixed"], ["by_token"], perm=[1, 2, 0, 3]),
        node("Shape", ["by_token"], ["head_shape"], start=2),
        node("Concat", ["flat", "head_shape"], ["padded_shape"], axis=0),
        node("Reshape", ["by_token", "padded_shape"], ["padded_tokens"]),
        node("Gather", ["padded_tokens", "pack"], ["tokens"], axis=0),
        node("Unsqueeze", ["tokens", "first"], ["answer"]),
    ]
    return helper.make_function(
        padded.DOMAIN,
        "RaggedAttention",
        ["query", "key", "value", "lengths", "unpack", "bias", "pack"],
        ["answer"],
        body,
        [helper.make_opsetid("", padded.OPSET)],
        ["scale", "num_heads"],
    )
