"""Exports a torch encoder with its head to ONNX, and holds the export to the torch model's own answers.

The graph takes what its signature says, INT64 `(batch, seq)`, padded on the right. It is plain ONNX
(opset 17, IR 8: ONNX Runtime 1.19 in Triton 24.10 refuses more than opset 21 and IR 10), its attention a function of
the model (`attention`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import onnx
import torch

from tritonpress_generator import attention
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.onnx_graph import DOMAIN, IR_VERSION, OPSET
from tritonpress_generator.signature import Signature
from tritonpress_generator.steps.tokenizer.sequences import Batching, Sequences

ATTENTION = attention.ATTENTION
ABSOLUTE_TOLERANCE = 2e-5
"""The largest difference to torch that an export may have; FP32 rounding leaves about 1e-6 on unit vectors. Of answers
beyond 1, such as scores that no softmax has seen, relative to the largest."""
RELATIVE_TOLERANCE = 1e-4
"""The largest norm of the difference to torch, relative to the norm of torch's answer."""
MOST_BYTES = 2**31 - 1 - (16 << 20)
"""Of the weights: protobuf has no message of 2 GiB, and the graph is in it beside them."""
_PARITY_TEXTS = 12
_TAKE_OUT = ("crop", "prune")
"""Passes that leave fewer weights."""


@dataclass(frozen=True)
class Parity:
    """How far an export is from torch on real token ids, the worst of all lengths tried."""

    max_absolute_error: float
    relative_error: float
    lengths: tuple[int, ...]


class _Exported(torch.nn.Module):
    """The task's head on the encoder, with a mask that reaches attention as the graph's input."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *segments: torch.Tensor) -> Any:
        with attention.masked(attention_mask):
            return self.model(input_ids, attention_mask, *segments)


def torch_infer(model: torch.nn.Module, signature: Signature) -> Infer:
    """Returns `model` as an `Infer` of the padded form, in inference mode."""

    def infer(feed: Mapping[str, Array]) -> dict[str, Array]:
        device = next(model.parameters()).device
        with torch.inference_mode():
            inputs = (torch.from_numpy(np.ascontiguousarray(feed[name])) for name in signature.inputs)
            answer = model(*(tensor.to(device) for tensor in inputs))
        tensors = answer if isinstance(answer, tuple) else (answer,)
        return {name: tensor.cpu().numpy() for name, tensor in zip(signature.outputs, tensors, strict=True)}

    return infer


def check_size(model: torch.nn.Module, passes: Iterable[str] = ()) -> None:
    """Refuses a model that is too large for an ONNX file.

    Args:
        model: What would be exported, if no pass takes weights out of it.
        passes: The words of those that are yet to come.

    Raises:
        InputError: Its weights have more than `MOST_BYTES`, and no pass is to take some out.
    """
    size = sum(weights.numel() * weights.element_size() for weights in model.parameters())
    if size > MOST_BYTES and not set(passes) & set(_TAKE_OUT):
        raise InputError(
            f"export: the weights must be at most {MOST_BYTES} bytes, which is what an ONNX file holds, are {size}; "
            "take some out (passes: crop with vocabulary or layers, prune), or give a smaller encoder"
        )


def export(model: torch.nn.Module, signature: Signature) -> onnx.ModelProto:
    """Returns the ONNX form of `model`.

    Args:
        model: Takes the signature's inputs in their order, INT64 `(batch, seq)`, and gives a tensor or, of several
            outputs, a tuple of tensors.
        signature: What it reads and gives.

    Raises:
        InputError: The model is too large, or has an operator that the exporter cannot express.
    """
    example = (torch.ones((2, 8), dtype=torch.int64),) * len(signature.inputs)
    axes = {name: {0: "batch", 1: "seq"} for name in signature.inputs}
    axes |= {n: {0: "batch"} | ({1: "seq"} if o.width is None else {}) for n, o in signature.outputs.items()}
    return traced(_Exported(model), example, signature.inputs, signature, axes, attention.functions())


def traced(
    model: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: tuple[str, ...],
    signature: Signature,
    axes: Mapping[str, Mapping[int, str]],
    functions: Sequence[onnx.FunctionProto],
) -> onnx.ModelProto:
    """Returns the ONNX form of `model` as `torch` traces it.

    Args:
        model: The module.
        example: Its arguments.
        inputs: Their names.
        signature: Of which the outputs count.
        axes: The dimensions that vary.
        functions: Those that are called in the graph are added to it.

    Raises:
        InputError: The model is too large, or has an operator that the exporter cannot express.
    """
    check_size(model)
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
    called = {node.op_type for node in exported.graph.node if node.domain == DOMAIN}
    exported.functions.extend(function for function in functions if function.name in called)
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


def parity_feeds(sequences: Sequences, max_length: int) -> list[dict[str, Any]]:
    """Returns real token ids at several lengths: single texts, cut ones, the longest possible one, and a batch."""
    some = sequences.chosen(range(0, len(sequences), max(1, len(sequences) // _PARITY_TEXTS))[:_PARITY_TEXTS])
    cut = [_cut(some.chosen([i]), 2 + i) for i in range(4, min(6, len(some)))]
    # One text behind another, until there are enough tokens; of pairs, the second goes on.
    long = Sequences(
        [_repeated(sequences.ids, max_length)],
        [1],
        [_repeated(sequences.segments, max_length)] if sequences.segments else [],
    )
    batching = Batching(pad_id=0)
    return [batching.pad(batch) for batch in (*(some.chosen([i]) for i in range(min(4, len(some)))), *cut, long, some)]


def _cut(sequences: Sequences, length: int) -> Sequences:
    """Returns the first tokens of each sequence."""
    return Sequences(
        [row[:length] for row in sequences.ids], sequences.counts, [row[:length] for row in sequences.segments]
    )


def _repeated(rows: Sequence[Sequence[int]], length: int) -> list[int]:
    """Returns the values of all rows behind one another, from the front again if they are too few."""
    values = [value for row in rows for value in row]
    return (values * (1 + length // len(values)))[:length]


@contextmanager
def _eager_mode_tracing() -> Iterator[None]:
    """Silences what the tracing exporter always says: that it is the old one, and that shapes become constants.

    A shape that became a constant by mistake would show in the parity check, which asks at several shapes.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx")
        # A size is a tensor while it is traced, and DeBERTa makes a tensor of it.
        warnings.filterwarnings("ignore", message="To copy construct from a tensor", category=UserWarning)
        yield
