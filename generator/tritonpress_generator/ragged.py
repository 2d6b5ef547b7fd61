"""The ragged form of the export: sequences of all lengths packed behind one another, with no padding between them.

The graph takes `input_ids`, INT64 `(tokens,)` over all sequences, and `lengths`, INT64 `(sequences,)`. Everything but
attention works on packed tokens, as one sequence of all of them; where each sequence begins, and every token's position
in its own, the graph works out from `lengths`. Attention is a function of the model, `tritonpress.RaggedAttention`,
whose body is plain operators; `fuse` knows a form that computes no padding.

The lengths are an input, and not Triton's accumulated element counts, since those count a request as one sequence: a
client's batch has several (`batch_input` in Triton's model configuration).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from transformers import AttentionInterface

from tritonpress_generator import export as padded
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array, Infer

ATTENTION = "tritonpress_ragged_attention"
INPUTS = ("input_ids", "lengths")


@dataclass(frozen=True)
class Layout:
    """Where the tokens of packed sequences lie; made in the graph, once for all layers."""

    lengths: torch.Tensor
    """INT64 `(sequences,)`."""
    starts: torch.Tensor
    """INT64 `(sequences,)`: the packed index of each sequence's first token."""
    sequence: torch.Tensor
    """INT64 `(tokens,)`: the sequence of each token."""
    position: torch.Tensor
    """INT64 `(tokens,)`: each token's position in its sequence, from 0."""
    unpack: torch.Tensor
    """INT64 `(sequences, longest)`: the packed index of what stands there in a padded batch; 0 where nothing does."""
    bias: torch.Tensor
    """FP32 `(sequences, 1, longest)`: 0 where a token stands in the padded batch, the lowest FP32 elsewhere."""
    pack: torch.Tensor
    """INT64 `(tokens,)`: each token's index in the padded batch, its two dimensions counted as one."""

    @staticmethod
    def of(lengths: torch.Tensor, tokens: torch.Tensor) -> Layout:
        """Returns the layout of sequences with `lengths`; `tokens` is INT64 `(tokens,)`, of which the shape counts."""
        ends = torch.cumsum(lengths, 0)
        starts = ends - lengths
        index = torch.cumsum(torch.ones_like(tokens), 0) - 1
        sequence = (index[:, None] >= ends[None, :]).to(torch.int64).sum(1)
        position = index - starts[sequence]
        longest = lengths.max()
        column = torch.arange(longest)  # type: ignore[call-overload]  # a tensor, so that tracing keeps it
        present = column[None, :] < lengths[:, None]
        unpack = torch.where(present, starts[:, None] + column[None, :], torch.zeros_like(starts)[:, None])
        bias = (1.0 - present.to(torch.float32)) * torch.finfo(torch.float32).min
        return Layout(lengths, starts, sequence, position, unpack, bias[:, None, :], sequence * longest + position)


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
    """A task's model on packed sequences: INT64 `(tokens,)` ids and `(sequences,)` lengths to a row a sequence."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Takes `model` over: an encoder with a head that has `states` and `pool_packed`.

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

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> Any:
        _layout.append(Layout.of(lengths, input_ids))
        try:
            states = self.model.states(input_ids[None], torch.ones_like(input_ids)[None])  # type: ignore[operator]
            return self.model.pool_packed(states[0], _layout[-1])  # type: ignore[operator]
        finally:
            _layout.pop()


def export(model: torch.nn.Module, outputs: Mapping[str, int]) -> onnx.ModelProto:
    """Returns the ragged ONNX form of `model`, which is changed by it.

    Args:
        model: A task's head on an encoder that was loaded with the attention `ATTENTION`.
        outputs: Names of the FP32 `(sequences, width)` tensors, in order, with their widths.

    Raises:
        InputError: The encoder cannot be packed, or has an operator that the exporter cannot express.
    """
    example = (torch.ones(12, dtype=torch.int64), torch.tensor([5, 7], dtype=torch.int64))
    axes = {"input_ids": {0: "tokens"}, "lengths": {0: "sequences"}} | {name: {0: "sequences"} for name in outputs}
    graph = padded.traced(Packed(model), example, INPUTS, outputs, axes, _attention_function())
    graph.graph.input.extend(
        helper.make_tensor_value_info(elements(name), onnx.TensorProto.INT8, [elements(name)]) for name in outputs
    )
    return graph


def elements(output: str) -> str:
    """Returns the name of the input that has as many elements as `output`, for Triton's sake; the graph ignores it."""
    return f"{output}_elements"


def as_padded(infer: Infer, outputs: Mapping[str, int]) -> Infer:
    """Returns the ragged `infer` as one that takes a padded batch: `input_ids` and `attention_mask`."""

    def asked(feed: Mapping[str, Array]) -> dict[str, Array]:
        return infer(packed(feed, outputs))

    return asked


def packed(feed: Mapping[str, Array], outputs: Mapping[str, int]) -> dict[str, Array]:
    """Returns a padded batch, `input_ids` and `attention_mask`, as the inputs of the ragged graph with `outputs`."""
    mask = feed["attention_mask"].astype(bool)
    tensors: dict[str, Array] = {"input_ids": feed["input_ids"][mask], "lengths": mask.sum(1, dtype=np.int64)}
    return tensors | {elements(name): np.zeros(len(mask) * width, np.int8) for name, width in outputs.items()}


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
