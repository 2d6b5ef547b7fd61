"""Attention that exports as one node: a function of the model whose body is plain operators.

A graph pass that knows a faster kernel finds it by its name instead of by the shape of its operators, and what none has
taken is inlined in the end. `tritonpress.Attention` takes a padded batch and its mask; `tritonpress.BiasedAttention`
also what positions add to the scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from transformers import AttentionInterface

from tritonpress_generator.onnx_graph import DOMAIN, OPSET

ATTENTION = "tritonpress_attention"


class _Attention(torch.autograd.Function):
    """Scaled dot-product attention of a padded batch."""

    @staticmethod
    def forward(_: Any, query: Any, key: Any, value: Any, mask: Any, position_bias: Any, *settings: Any) -> Any:
        scale, _heads = settings
        bias = (1.0 - mask[:, None, None, :].to(query.dtype)) * torch.finfo(query.dtype).min
        if position_bias is not None:
            bias = bias + position_bias
        answer = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
        return answer.transpose(1, 2)

    @staticmethod
    def symbolic(g: Any, *arguments: Any) -> Any:
        *inputs, position_bias, scale, heads = arguments
        return attention_node(g, "Attention", inputs, position_bias, batch=None, scale=scale, heads=heads)


def attention_node(
    g: Any, name: str, inputs: list[Any], position_bias: Any, *, batch: int | None, scale: float, heads: int
) -> Any:
    """Returns the answer of a new node of the function `name`, or of its biased form if there is a bias."""
    if position_bias is not None:
        name, inputs = f"Biased{name}", [*inputs, position_bias]
    answer = g.op(f"{DOMAIN}::{name}", *inputs, scale_f=scale, num_heads_i=heads)
    # Without a type the exporter warns, a node at a time, on standard error.
    return answer.setType(torch._C.TensorType.get().with_dtype(torch.float32).with_sizes([batch, None, heads, None]))


_mask: list[torch.Tensor] = []


@contextmanager
def masked(mask: torch.Tensor) -> Iterator[None]:
    """Makes `mask` that of the attention inside: the graph's own input, and not a ready-made bias."""
    _mask.append(mask)
    try:
        yield
    finally:
        _mask.pop()


def _attention_forward(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Answers `(batch, seq, heads, head_size)` for tensors of `(batch, heads, seq, head_size)`."""
    scale = float(kwargs.get("scaling") or query.shape[-1] ** -0.5)
    heads = int(query.shape[1])
    bias = position_bias(kwargs, heads=heads, length=_mask[-1].shape[1])
    key, value = for_each_head(key, heads), for_each_head(value, heads)
    answer = _Attention.apply(query, key, value, _mask[-1], bias, scale, heads)  # type: ignore[no-untyped-call]
    return answer, None


AttentionInterface.register(ATTENTION, _attention_forward)


def position_bias(settings: dict[str, Any], *, heads: int, length: int) -> torch.Tensor | None:
    """Returns what positions add to the scores of an attention that is called with `settings`, or None if nothing.

    FP32 `(1, heads, length, length)`: older kernels want it for each head.

    Args:
        settings: MPNet hands on its own `position_bias`, ModernBERT's local layers a `sliding_window`: a token sees
            those that are less than so many away.
        heads: How many the attention has.
        length: Of the padded batch.
    """
    window = settings.get("sliding_window")
    bias: torch.Tensor | None = settings.get("position_bias")
    if window is not None:
        place = torch.arange(length)
        far = (place[None, :] - place[:, None]).abs() >= window
        bias = (far.to(torch.float32) * torch.finfo(torch.float32).min).expand(1, heads, -1, -1)
    return bias


def for_each_head(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Returns keys or values with as many heads as the query has, where groups of them share one (EuroBERT)."""
    own = tensor.shape[1]
    return tensor if own == heads else tensor.repeat_interleave(heads // own, dim=1)


def functions() -> list[onnx.FunctionProto]:
    """Returns `tritonpress.Attention` and `tritonpress.BiasedAttention`.

    Inputs: query, key, value `(batch, heads, seq, head_size)`, FP32; mask `(batch, seq)`, INT64, 1 where a token is;
    of the biased form position_bias, FP32 `(1, heads, seq, seq)`.
    Output: `(batch, seq, heads, head_size)`, FP32.
    """
    return [_function(biased=False), _function(biased=True)]


def _function(*, biased: bool) -> onnx.FunctionProto:
    node = helper.make_node
    body = [
        scale_constant(),
        node("Constant", [], ["one"], value_float=1.0),
        node("Constant", [], ["lowest"], value_float=float(np.finfo(np.float32).min)),
        node("Constant", [], ["axes"], value_ints=[1, 2]),
        node("Transpose", ["key"], ["key_transposed"], perm=[0, 1, 3, 2]),
        node("MatMul", ["query", "key_transposed"], ["products"]),
        node("Mul", ["products", "scale"], ["scaled"]),
        node("Cast", ["mask"], ["present"], to=TensorProto.FLOAT),
        node("Sub", ["one", "present"], ["absent"]),
        node("Mul", ["absent", "lowest"], ["bias"]),
        node("Unsqueeze", ["bias", "axes"], ["bias_4d"]),
        *([node("Add", ["scaled", "position_bias"], ["positioned"])] if biased else []),
        node("Add", ["positioned" if biased else "scaled", "bias_4d"], ["biased"]),
        node("Softmax", ["biased"], ["weights"], axis=-1),
        node("MatMul", ["weights", "value"], ["mixed"]),
        node("Transpose", ["mixed"], ["answer"], perm=[0, 2, 1, 3]),
    ]
    return function("Attention", ["query", "key", "value", "mask"], body, biased=biased)


def scale_constant() -> onnx.NodeProto:
    """Returns the node that gives a function's attribute `scale` as the tensor `scale`."""
    scale = helper.make_node("Constant", [], ["scale"])
    scale.attribute.append(
        onnx.AttributeProto(name="value_float", ref_attr_name="scale", type=onnx.AttributeProto.FLOAT)
    )
    return scale


def function(name: str, inputs: list[str], body: list[onnx.NodeProto], *, biased: bool) -> onnx.FunctionProto:
    """Returns the function of `body`, which reads `inputs`, and `position_bias` if it is `biased`."""
    if biased:
        name, inputs = f"Biased{name}", [*inputs, "position_bias"]
    opset = helper.make_opsetid("", OPSET)
    return helper.make_function(DOMAIN, name, inputs, ["answer"], body, [opset], ["scale", "num_heads"])
