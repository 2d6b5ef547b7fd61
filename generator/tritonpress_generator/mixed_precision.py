"""Types a graph strongly: FP16 or BF16 where that is enough, FP32 where it is not.

TensorRT 11 takes a tensor's type from the graph and has no flags that would choose another
(https://docs.nvidia.com/deeplearning/tensorrt/11.x/api/migration). FP32 stay: Softmax, normalisations, and the
statistics that a normalisation in plain operators takes; the angles of rotary positions; all that is behind the last
residual connection, which is the last normalisation and the task's head; the graph's outputs. A pair of QuantizeLinear
and DequantizeLinear gives what its scale's type is, so that it is typed like every other node.
"""

from __future__ import annotations

from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
import onnx.version_converter
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tritonpress_generator.onnx_graph import GraphEditor, ahead, behind, normalized, residuals

Precision = Literal["fp32", "fp16", "bf16"]
OPSET = 19
"""The first whose QuantizeLinear takes FP16 and BF16."""
_IR_VERSION = 9
_NUMPY: dict[int, Any] = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}
_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_IN_FP32 = {"Softmax", "LogSoftmax", "LayerNormalization", "ReduceMean", "ReduceSum", "ReduceL2", "Pow", "Sqrt"}
_OF_ANGLES = {"Sin", "Cos"}
_STATISTICS = {"ReduceMean", "Pow", "Sqrt", "Reciprocal"}
"""What only a normalisation in plain operators computes."""
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Reciprocal", "Sqrt"}
_LARGEST: dict[int, float] = {TensorProto.FLOAT16: 65504.0 / 2, TensorProto.BFLOAT16: (2 - 2**-7) * 2.0**127 / 2}
"""Half of the largest: what a mask adds to a score leaves the sum finite, and no constant is an infinity."""
_STEP, _NORMAL = np.float32(2**-24), np.float32(2**-14)
"""Of FP16 the smallest number, and the smallest that has all its bits."""
_NOTHING = np.float32(2**-34)
"""A scale below it is of values that all are 0 in FP16: E4M3's largest code, 448, is less than half a `_STEP`."""


def typed(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """Returns `model`, an FP32 graph of plain operators with or without Q/DQ pairs, with tensors of `precision`.

    Integers stay what they are, and so do the inputs and outputs of the graph.
    """
    plain = normalized(model)
    if precision == "fp32":
        return plain
    if next(opset.version for opset in plain.opset_import if opset.domain == "") < OPSET:
        plain = onnx.version_converter.convert_version(plain, OPSET)
        plain = normalized(plain)
    plain.ir_version = max(plain.ir_version, _IR_VERSION)
    if precision == "fp16":
        _keep_scales(plain)
    _Typer(plain, _TYPES[precision]).run()
    return plain


def _keep_scales(model: onnx.ModelProto) -> None:
    """Makes the scales of pairs such that FP16 has them, and not 0 in their place, which TensorRT's parser refuses.

    Small ones are rounded up, so that codes still reach the largest value, and no step is wider by more than FP16's own
    there. That of nothing but zeros may be any, so it is one whose reciprocal FP16 has too.
    """
    scales = {node.input[1] for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}}
    for tensor in model.graph.initializer:
        if tensor.name in scales and tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor)
            kept = np.where(value < _NORMAL, np.ceil(value / _STEP) * _STEP, value)
            kept = np.where(value < _NOTHING, _NORMAL, kept).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(kept, tensor.name))


def in_fp32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a graph in FP32 of what `model`, some of whose tensors are BF16, computes.

    Its tensors are rounded as those are, which is what kernels do that add up in FP32. ONNX Runtime's CPU provider has
    no operator in BF16 but Cast.
    """
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    known = (*inferred.value_info, *inferred.output)
    low = {value.name for value in known if value.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    del plain.graph.value_info[:]
    for tensor in plain.graph.initializer:
        _widen(tensor)
    nodes = []
    for node in plain.graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            _widen(attribute.t)
            if node.op_type == "Cast" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
        for place, name in enumerate(node.output):
            if name in low:
                wide, rounded = f"{name}/wide", f"{name}/rounded"
                node.output[place] = wide
                nodes.append(helper.make_node("Cast", [wide], [rounded], name=rounded, to=TensorProto.BFLOAT16))
                nodes.append(helper.make_node("Cast", [rounded], [name], name=f"{name}/fp32", to=TensorProto.FLOAT))
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    return plain


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.BFLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


class _Typer:
    """One run over a graph, whose nodes are in the order of the flow."""

    def __init__(self, model: onnx.ModelProto, low: int) -> None:
        self._low = low
        self._editor = GraphEditor(model)
        self._model = model
        self._nodes: list[onnx.NodeProto] = []
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        known = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        self._floats = {value.name for value in known if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._floats |= {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
        self._in_fp32 = self._chosen()
        self._made: dict[tuple[str, int], str] = {}

    def run(self) -> None:
        """Edits the model."""
        graph = self._model.graph
        for node in list(graph.node):
            self._convert(node)
        del graph.node[:]
        graph.node.extend(self._nodes)
        self._editor.refresh()
        self._editor.remove_unused()

    def _chosen(self) -> set[str]:
        """Returns the tensors that are computed in FP32."""
        editor, nodes = self._editor, self._model.graph.node
        adds = residuals(editor)
        outputs = {tensor.name for tensor in self._model.graph.output}
        chosen = outputs | (behind(editor, adds[-1].output) if adds else set())
        if adds:
            # What the head reads beside the encoder's states, such as the mask of a mean.
            chosen |= ahead(editor, list(outputs)) - ahead(editor, adds[-1].output)
        statistics: set[str] = set()
        for node in nodes:
            inputs = [name for name in node.input if name in self._floats and editor.constant(name) is None]
            follows = node.op_type in _ELEMENTWISE and inputs and all(name in statistics for name in inputs)
            if node.op_type in _STATISTICS or follows:
                statistics.update(node.output)
            if node.op_type in _IN_FP32:
                chosen.update(node.output)
            if node.op_type in _OF_ANGLES:
                # An angle is a position times a frequency: of the 500th, FP16 would round away a quarter.
                chosen.update(node.output, ahead(editor, node.input))
        return chosen | statistics

    def _convert(self, node: onnx.NodeProto) -> None:
        """Puts `node` behind what it needs, each input of the node's own type."""
        own = TensorProto.FLOAT if any(name in self._in_fp32 for name in node.output) else self._low
        if node.op_type == "QuantizeLinear":
            # Rounds what it is given, in the type that it is given in.
            own = self._type(node.input[0])
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT:
            node.attribute[0].i = own
        elif node.op_type != "Cast":
            for place, name in enumerate(node.input):
                if name in self._floats:
                    node.input[place] = self._as(name, own)
        self._nodes.append(node)

    def _type(self, name: str) -> int:
        """Returns the type that a tensor has by now."""
        producer = self._editor.producer.get(name)
        if producer is None or any(output in self._in_fp32 for output in producer.output):
            return int(TensorProto.FLOAT)
        return self._low

    def _as(self, name: str, wanted: int) -> str:
        """Returns the name of the tensor `name` in the type `wanted`."""
        constant = self._editor.constants.get(name)
        of = TensorProto.FLOAT if constant is not None else self._type(name)
        if of == wanted:
            return name
        if (name, wanted) not in self._made:
            made = f"{name}/{TensorProto.DataType.Name(wanted).lower()}"
            if constant is not None:
                value = _in_range(numpy_helper.to_array(constant), wanted)
                self._model.graph.initializer.append(numpy_helper.from_array(value, made))
            else:
                self._nodes.append(helper.make_node("Cast", [name], [made], name=f"{made}/cast", to=wanted))
            self._made[name, wanted] = made
        return self._made[name, wanted]


def _in_range(value: NDArray[Any], wanted: int) -> NDArray[Any]:
    return np.clip(value, -_LARGEST[wanted], _LARGEST[wanted]).astype(_NUMPY[wanted])
