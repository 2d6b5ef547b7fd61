"""Attention within each of the packed sequences, that exports as one node: a function of plain operators.

`tritonpress.RaggedAttention` unpacks query, key and value to a padded batch, attends, and packs the answer again;
`tritonpress.BiasedRaggedAttention` also adds what positions do to the scores. One long text makes the padded batch
large: 256 tokens beside 63 texts of 8 took 451 MiB (MiniLM-L6), where what `fuse` makes of it took 14. A Loop over the
sequences in plain operators would do as `fuse` does (18 MiB, and 1.3 to 1.9 times as fast as the padded batch on two
cores), but its shapes differ from one iteration to the next, and the plain form is kept for runtimes that fix them
before they run (TensorRT).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import helper
from transformers import AttentionInterface

from tritonpress_generator.attention import attention_node, for_each_head, function, position_bias, scale_constant
from tritonpress_generator.packed_layout import Layout

ATTENTION = "tritonpress_ragged_attention"


class _Attention(torch.autograd.Function):
    """Scaled dot-product attention within each of the packed sequences."""

    @staticmethod
    def forward(
        _: Any, query: Any, key: Any, value: Any, lengths: Any, unpack: Any, bias: Any, pack: Any, *settings: Any
    ) -> Any:
        position_bias, scale, _heads = settings
        bias = bias[:, None] if position_bias is None else bias[:, None] + position_bias

        def unpacked(tensor: Any) -> Any:
            return tensor[0, :, unpack].transpose(0, 1)

        answer = torch.nn.functional.scaled_dot_product_attention(
            unpacked(query), unpacked(key), unpacked(value), attn_mask=bias, scale=scale
        )
        return answer.transpose(1, 2).flatten(0, 1)[pack][None]

    @staticmethod
    def symbolic(g: Any, *arguments: Any) -> Any:
        *inputs, position_bias, scale, heads = arguments
        return attention_node(g, "RaggedAttention", inputs, position_bias, batch=1, scale=scale, heads=heads)


_layout: list[Layout] = []


@contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """Makes `layout` that of the attention, and of the positions, inside."""
    _layout.append(layout)
    try:
        yield
    finally:
        _layout.pop()


def current_layout() -> Layout:
    """Returns the layout of the packed sequences that are computed right now."""
    return _layout[-1]


def _attention_forward(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Answers `(1, tokens, heads, head_size)` for tensors of `(1, heads, tokens, head_size)`."""
    scale = float(kwargs.get("scaling") or query.shape[-1] ** -0.5)
    at = current_layout()
    heads = int(query.shape[1])
    bias = position_bias(kwargs, heads=heads, length=at.unpack.shape[1])
    key, value = for_each_head(key, heads), for_each_head(value, heads)
    answer = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, at.lengths, at.unpack, at.bias, at.pack, bias, scale, heads
    )
    return answer, None


AttentionInterface.register(ATTENTION, _attention_forward)


def functions() -> list[onnx.FunctionProto]:
    """Returns `tritonpress.RaggedAttention` and `tritonpress.BiasedRaggedAttention`.

    Inputs: query, key, value `(1, heads, tokens, head_size)`, FP32; lengths, unpack, bias, pack as in `Layout`; of the
    biased form position_bias, FP32 `(1, heads, longest, longest)`, that all sequences share.
    Output: `(1, tokens, heads, head_size)`, FP32.
    """
    return [_function(biased=False), _function(biased=True)]


def _function(*, biased: bool) -> onnx.FunctionProto:
    node = helper.make_node
    body = [
        scale_constant(),
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
    ]
    if biased:
        body += [
            node("Transpose", ["position_bias"], ["by_head"], perm=[1, 0, 2, 3]),
            node("Add", ["scaled", "by_head"], ["positioned"]),
        ]
    body += [
        node("Add", ["positioned" if biased else "scaled", "bias"], ["biased"]),
        node("Softmax", ["biased"], ["weights"], axis=-1),
        node("MatMul", ["weights", "value_rows"], ["mixed"]),
        node("Transpose", ["mixed"], ["by_token"], perm=[1, 2, 0, 3]),
        node("Shape", ["by_token"], ["head_shape"], start=2),
        node("Concat", ["flat", "head_shape"], ["padded_shape"], axis=0),
        node("Reshape", ["by_token", "padded_shape"], ["padded_tokens"]),
        node("Gather", ["padded_tokens", "pack"], ["tokens"], axis=0),
        node("Unsqueeze", ["tokens", "first"], ["answer"]),
    ]
    inputs = ["query", "key", "value", "lengths", "unpack", "bias", "pack"]
    return function("RaggedAttention", inputs, body, biased=biased)
