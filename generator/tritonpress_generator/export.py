"""Exports a torch encoder with its head to ONNX, and holds the export to the torch model's own answers.

The graph takes what its signature says, INT64 `(batch, seq)`, padded on the right. It is plain ONNX
(opset 17, IR 8: ONNX Runtime 1.19 in Triton 24.10 refuses more than opset 21 and IR 10). Attention is written as a
function of the model, `tritonpress.Attention`, whose body is plain operators: a graph pass that knows a faster
kernel finds it by its name instead of by the shape of its operators, and what none has taken is inlined in the end.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from transformers import AttentionInterface

from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.signature import Signature

OPSET = 17
IR_VERSION = 8
ATTENTION = "tritonpress_attention"
DOMAIN = "tritonpress"
ABSOLUTE_TOLERANCE = 2e-5
"""The largest difference to torch that an export may have; FP32 rounding leaves about 1e-6 on unit vectors. Of answers
beyond 1, such as scores that no softmax has seen, relative to the largest."""
RELATIVE_TOLERANCE = 1e-4
"""The largest norm of the difference to torch, relative to the norm of torch's answer."""


@dataclass(frozen=True)
class Parity:
    """How far an export is from torch on real token ids, the worst of all lengths tried."""

    max_absolute_error: float
    relative_error: float
    lengths: tuple[int, ...]


class _Attention(torch.autograd.Function):
    """Scaled dot-product attention that exports as one node."""

    @staticmethod
    def forward(_: Any, query: Any, key: Any, value: Any, mask: Any, scale: float, heads: int) -> Any:
        bias = (1.0 - mask[:, None, None, :].to(query.dtype)) * torch.finfo(query.dtype).min
        answer = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
        return answer.transpose(1, 2)

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, mask: Any, scale: float, heads: int) -> Any:
        answer = g.op(f"{DOMAIN}::Attention", query, key, value, mask, scale_f=scale, num_heads_i=heads)
        # Without a type the exporter warns, a node at a time, on standard error.
        return answer.setType(torch._C.TensorType.get().with_dtype(torch.float32).with_sizes([None, None, heads, None]))


_mask: list[torch.Tensor] = []


def _attention_forward(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Answers `(batch, seq, heads, head_size)`; the mask is the one that the graph was given, not a ready-made bias."""
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return _Attention.apply(query, key, value, _mask[-1], float(scale), int(query.shape[1])), None  # type: ignore[no-untyped-call]


AttentionInterface.register(ATTENTION, _attention_forward)


class _Exported(torch.nn.Module):
    """The task's head on the encoder, with a mask that reaches attention as the graph's input."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *segments: torch.Tensor) -> Any:
        _mask.append(attention_mask)
        try:
            return self.model(input_ids, attention_mask, *segments)
        finally:
            _mask.pop()


def torch_infer(model: torch.nn.Module, signature: Signature) -> Infer:
    """Returns `model` as an `Infer` of the padded form, in inference mode."""

    def infer(feed: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            answer = model(*(torch.from_numpy(np.ascontiguousarray(feed[name])) for name in signature.inputs))
        tensors = answer if isinstance(answer, tuple) else (answer,)
        return {name: tensor.numpy() for name, tensor in zip(signature.outputs, tensors, strict=True)}

    return infer


def export(model: torch.nn.Module, signature: Signature) -> onnx.ModelProto:
    """Returns the ONNX form of `model`.

    Args:
        model: Takes the signature's inputs in their order, INT64 `(batch, seq)`, and gives a tensor or, of several
            outputs, a tuple of tensors.
        signature: What it reads and gives.

    Raises:
        InputError: The model has an operator that the exporter cannot express.
    """
    example = (torch.ones((2, 8), dtype=torch.int64),) * len(signature.inputs)
    axes = {name: {0: "batch", 1: "seq"} for name in signature.inputs}
    axes |= {n: {0: "batch"} | ({1: "seq"} if o.width is None else {}) for n, o in signature.outputs.items()}
    return traced(_Exported(model), example, signature.inputs, signature, axes, _attention_function())


def traced(
    model: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: tuple[str, ...],
    signature: Signature,
    axes: Mapping[str, Mapping[int, str]],
    function: onnx.FunctionProto,
) -> onnx.ModelProto:
    """Returns the ONNX form of `model` as `torch` traces it.

    Args:
        model: The module.
        example: Its arguments.
        inputs: Their names.
        signature: Of which the outputs count.
        axes: The dimensions that vary.
        function: Added if a node of its domain is in the graph.

    Raises:
        InputError: The model has an operator that the exporter cannot express.
    """
    buffer = BytesIO()
    with _eager_mode_tracing(), torch.inference_mode():
        try:
            torch.onnx.export(
                model,
                example,
                buffer,  # type: ignore[arg-type]
                dynamo=False,  # the graph optimisers of ONNX Runtime recognise what this exporter writes
                opset_version=OPSET,
                custom_opsets={DOMAIN: 1},
                input_names=list(inputs),
                output_names=list(signature.outputs),
                dynamic_axes=axes,
            )
        except torch.onnx.errors.OnnxExporterError as exc:
            raise InputError(f"export: {' '.join(str(exc).split())[:300]}; this encoder cannot be exported") from exc
    exported = onnx.load_from_string(buffer.getvalue())
    exported.ir_version = IR_VERSION
    if any(node.domain == DOMAIN for node in exported.graph.node):
        exported.functions.append(function)
    for tensor in exported.graph.output:
        width = signature.outputs[tensor.name].width
        if width is not None:
            tensor.type.tensor_type.shape.dim[1].dim_value = width
    onnx.checker.check_model(exported)
    return exported


def check_parity(reference: Infer, exported: Infer, feeds: Sequence[dict[str, Array]], signature: Signature) -> Parity:
    """Returns how far `exported` is from `reference`; both are asked each of `feeds`, padded batches.

    Raises:
        InputError: An answer is not finite, or further away than the tolerances of this module.
    """
    differences: list[tuple[float, float]] = []
    for feed in feeds:
        expected, got = reference(feed), exported(feed)
        for name, output in signature.outputs.items():
            present = ... if output.width is not None else feed["attention_mask"].astype(bool)
            tensor = expected[name][present]
            difference = np.abs(tensor - got[name][present])
            scale = max(1.0, float(np.abs(tensor).max()))
            relative = float(np.linalg.norm(difference) / np.linalg.norm(tensor))
            differences.append((float(difference.max()) / scale, relative))
    # NumPy's maximum, unlike Python's, keeps NaN.
    absolute, relative = map(float, np.max(differences, axis=0))
    lengths = tuple(sorted({feed["input_ids"].shape[1] for feed in feeds}))
    # Written so that NaN fails too.
    if not (absolute <= ABSOLUTE_TOLERANCE and relative <= RELATIVE_TOLERANCE):
        raise InputError(
            f"export: ONNX must answer as torch within {ABSOLUTE_TOLERANCE:g} absolute and {RELATIVE_TOLERANCE:g} "
            f"relative, got {absolute:.3g} and {relative:.3g} at {lengths} tokens; this encoder is not supported"
        )
    return Parity(absolute, relative, lengths)


def _attention_function() -> onnx.FunctionProto:
    """Returns `tritonpress.Attention` in plain operators.

    Inputs: query, key, value `(batch, heads, seq, head_size)`, FP32; mask `(batch, seq)`, INT64, 1 where a token is.
    Output: `(batch, seq, heads, head_size)`, FP32.
    """
    node = helper.make_node
    scale = node("Constant", [], ["scale"])
    scale.attribute.append(
        onnx.AttributeProto(name="value_float", ref_attr_name="scale", type=onnx.AttributeProto.FLOAT)
    )
    body = [
        scale,
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
        node("Add", ["scaled", "bias_4d"], ["biased"]),
        node("Softmax", ["biased"], ["weights"], axis=-1),
        node("MatMul", ["weights", "value"], ["mixed"]),
        node("Transpose", ["mixed"], ["answer"], perm=[0, 2, 1, 3]),
    ]
    return helper.make_function(
        DOMAIN,
        "Attention",
        ["query", "key", "value", "mask"],
        ["answer"],
        body,
        [helper.make_opsetid("", OPSET)],
        ["scale", "num_heads"],
    )


@contextmanager
def _eager_mode_tracing() -> Iterator[None]:
    """Silences what the tracing exporter always says: that it is the old one, and that shapes become constants.

    A shape that became a constant by mistake would show in the parity check, which asks at several shapes.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx")
        yield
