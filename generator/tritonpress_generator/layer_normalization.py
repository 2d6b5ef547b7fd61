"""Divides LayerNormalization into plain operators, for engines that do not know it: TensorRT before 8.6.

The plain form is that of the operator's definition (https://onnx.ai/onnx/operators/onnx__LayerNormalization.html), in
the operators that exporters wrote before opset 17, which TensorRT's fusions were made for. Mean and variance are taken
in `stash_type`, FP32 unless the node says otherwise, whatever the type of the tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tritonpress_generator.errors import InputError
from tritonpress_generator.onnx_graph import normalized

_AXES_ARE_AN_INPUT = 18
"""The opset from which ReduceMean takes its axes so."""


def divided(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns `model` in plain operators, without LayerNormalization.

    Raises:
        InputError: An axis is counted from the front, in a tensor whose rank is not known.
    """
    plain = normalized(model)
    opset = next(entry.version for entry in plain.opset_import if entry.domain == "")
    if all(node.op_type != "LayerNormalization" for node in plain.graph.node):
        return plain
    inferred = onnx.shape_inference.infer_shapes(plain, strict_mode=True, data_prop=True).graph
    values = {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.input)}
    nodes: list[onnx.NodeProto] = []
    for node in plain.graph.node:
        if node.op_type == "LayerNormalization":
            nodes += _Division(plain.graph, node, values, axes_are_an_input=opset >= _AXES_ARE_AN_INPUT).nodes
        else:
            nodes.append(node)
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    return plain


class _Division:
    """What stands for one node; its tensors are named after the node's answer."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        node: onnx.NodeProto,
        values: dict[str, onnx.TypeProto.Tensor],
        *,
        axes_are_an_input: bool,
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._graph = graph
        self._axes_are_an_input = axes_are_an_input
        self._prefix = node.output[0]
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        source, scale, bias = (*node.input, "")[:3]
        mean, inverse = (*node.output[1:], "", "")[:2]
        given = values.get(source)
        kind = given.elem_type if given is not None else self._constant_type(scale)
        self._stash = settings.get("stash_type", TensorProto.FLOAT)
        axes = self._axes(settings.get("axis", -1), given, node)
        wide = source if kind == self._stash else self._add("Cast", [source], "wide", to=self._stash)
        centred = self._add("Sub", [wide, self._mean(wide, axes, "mean", mean)], "centred")
        squared = self._add("Pow", [centred, self._number("two", 2.0)], "squared")
        variance = self._mean(squared, axes, "variance")
        epsilon = self._number("epsilon", settings.get("epsilon", 1e-5))
        deviation = self._add("Sqrt", [self._add("Add", [variance, epsilon], "positive")], "deviation")
        if inverse:
            self._add("Reciprocal", [deviation], "inverse", named=inverse)
        normal = self._add("Div", [centred, deviation], "normal")
        if kind != self._stash:
            normal = self._add("Cast", [normal], "narrow", to=kind)
        scaled = self._add("Mul", [normal, scale], "scaled", named="" if bias else self._prefix)
        if bias:
            self._add("Add", [scaled, bias], "shifted", named=self._prefix)

    def _constant_type(self, name: str) -> int:
        return next(int(tensor.data_type) for tensor in self._graph.initializer if tensor.name == name)

    def _axes(self, axis: int, given: onnx.TypeProto.Tensor | None, node: onnx.NodeProto) -> list[int]:
        if axis < 0:
            return list(range(axis, 0))
        if given is None or not given.HasField("shape"):
            raise InputError(
                f"{node.name}: axis must be counted from the back where the rank is not known, got {axis}; export with "
                "a negative axis"
            )
        return list(range(axis - len(given.shape.dim), 0))

    def _add(self, op_type: str, inputs: list[str], name: str, *, named: str = "", **settings: Any) -> str:
        """Returns the name of what a new node gives: `named`, or one after the node that is divided."""
        of = f"{self._prefix}/{name}"
        self.nodes.append(helper.make_node(op_type, inputs, [named or of], name=of, **settings))
        return named or of

    def _mean(self, source: str, axes: list[int], name: str, named: str = "") -> str:
        if not self._axes_are_an_input:
            return self._add("ReduceMean", [source], name, named=named, axes=axes, keepdims=1)
        tensor = helper.make_tensor(f"{self._prefix}/{name}/axes", TensorProto.INT64, [len(axes)], axes)
        self._graph.initializer.append(tensor)
        return self._add("ReduceMean", [source, tensor.name], name, named=named, keepdims=1)

    def _number(self, name: str, value: float) -> str:
        tensor = helper.make_tensor(f"{self._prefix}/{name}", self._stash, [], np.array([value], np.float32))
        self._graph.initializer.append(tensor)
        return str(tensor.name)
