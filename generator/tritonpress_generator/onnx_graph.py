"""Edits an ONNX graph: who makes a tensor, who reads it, what is constant, and what nothing needs any more."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import numpy_helper

OPSET = 17
IR_VERSION = 8
DOMAIN = "tritonpress"
"""Of the functions that the exports write."""
_WORTH_SHARING = 1024
"""The least bytes of a constant that is looked for among those that were added."""


class GraphEditor:
    """A view of `model.graph` that is edited in place; the maps are those of the moment `refresh` was last called."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._added: dict[tuple[int, tuple[int, ...], bytes], str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Brings the maps up to date after the nodes have changed."""
        graph = self.model.graph
        self.producer = {name: node for node in graph.node for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in _reads(node):
                self.consumers.setdefault(name, []).append(node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
            # The exporter writes equal weights once, and hands them on through Identity.
            elif node.op_type == "Identity" and node.input[0] in self.constants:
                self.constants[node.output[0]] = self.constants[node.input[0]]
        self.outputs = {tensor.name for tensor in graph.output}

    def constant(self, name: str) -> NDArray[Any] | None:
        """Returns the constant tensor `name`, or None where it is computed."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def only_consumer(self, name: str, op_type: str) -> onnx.NodeProto | None:
        """Returns the one node that reads `name` if it is an `op_type`, else None."""
        readers = self.consumers.get(name, [])
        alone = len(readers) == 1 and readers[0].op_type == op_type and name not in self.outputs
        return readers[0] if alone else None

    def add_constant(self, name: str, value: NDArray[Any]) -> str:
        """Adds `value` as an initializer and returns its name, or that of an equal one that was added before.

        Layers that share their weights (ALBERT) share what is made of them. Small constants and zeros are not looked
        for: they are alike by chance, and save nothing.
        """
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        if value.nbytes >= _WORTH_SHARING and value.any():
            key = tensor.data_type, tuple(tensor.dims), hashlib.sha256(tensor.raw_data).digest()
            if key in self._added:
                return self._added[key]
            self._added[key] = name
        self.model.graph.initializer.append(tensor)
        return name

    def replace(self, old: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
        """Puts `new` where `old` stood; the maps stay as they were until `refresh`."""
        nodes = self.model.graph.node
        index = next(i for i, node in enumerate(nodes) if node is old or node.output[0] == old.output[0])
        del nodes[index]
        for offset, node in enumerate(new):
            nodes.insert(index + offset, node)

    def remove_unused(self) -> None:
        """Removes every node and initializer that no output depends on."""
        graph = self.model.graph
        needed = {tensor.name for tensor in graph.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(graph.node):
            if any(name in needed for name in node.output):
                kept.append(node)
                needed.update(_reads(node))
        initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(reversed(kept))
        graph.initializer.extend(initializers)
        used = {node.domain for node in graph.node}
        functions = [function for function in self.model.functions if function.domain in used]
        del self.model.functions[:]
        self.model.functions.extend(functions)
        self._added.clear()
        self.refresh()

    def use_opset(self, domain: str, version: int) -> None:
        """Declares that nodes of `domain` occur."""
        if all(opset.domain != domain for opset in self.model.opset_import):
            self.model.opset_import.append(onnx.helper.make_opsetid(domain, version))


def _reads(node: onnx.NodeProto) -> list[str]:
    """Returns the tensors that `node` reads, those that its subgraphs capture included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                names += _reads(inner)
    return names


def normalized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns `model` without functions of its own, its constants all initializers, so that passes see one form."""
    plain = onnx.inliner.inline_local_functions(model)
    graph = plain.graph
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        graph.initializer.append(numpy_helper.from_array(_value(node.attribute[0]), node.output[0]))
        graph.node.remove(node)
    known = {tensor.name: tensor for tensor in graph.initializer}
    same: dict[str, str] = {}
    for node in [node for node in graph.node if node.op_type == "Identity" and node.input[0] in known]:
        same[node.output[0]] = same.get(node.input[0], node.input[0])
        known[node.output[0]] = known[node.input[0]]
        graph.node.remove(node)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
        # Of functions that were inlined.
        node.name = node.name or node.output[0]
    del graph.value_info[:]
    own = [opset for opset in plain.opset_import if opset.domain != DOMAIN]
    del plain.opset_import[:]
    plain.opset_import.extend(own)
    return plain


def with_own_vectors(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns `model` with a copy of each FP32 vector for every node that reads it, so that each may be changed."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    vectors = {
        t.name: t for t in copied.graph.initializer if len(t.dims) == 1 and t.data_type == onnx.TensorProto.FLOAT
    }
    seen: set[str] = set()
    for node in copied.graph.node:
        for place, name in enumerate(node.input):
            if name in seen:
                own = f"{name}/of/{node.name}/{place}"
                copied.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(vectors[name]), own))
                node.input[place] = own
            elif name in vectors:
                seen.add(name)
    return copied


def _value(attribute: onnx.AttributeProto) -> NDArray[Any]:
    """Returns what a Constant's attribute holds."""
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return np.array(value, kinds[attribute.name])


def linear_product(editor: GraphEditor, node: onnx.NodeProto, *, fewest_columns: int) -> bool:
    """Says whether `node` multiplies activations with a constant FP32 matrix of at least so many columns."""
    if node.op_type != "MatMul":
        return False
    weight = editor.constant(node.input[1])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
        return False
    return int(weight.shape[1]) >= fewest_columns


def residuals(editor: GraphEditor) -> list[onnx.NodeProto]:
    """Returns the Adds of residual connections, in the order of the flow.

    They add the (biased) answer of a product with constant weights to an activation that it has not made: neither the
    embeddings' sum, nor what positions or a mask add to scores, nor a bias, nor a term of an activation function.
    """
    return [node for node in editor.model.graph.node if skipping(editor, node) is not None]


def skipping(editor: GraphEditor, node: onnx.NodeProto) -> str | None:
    """Returns which input of a residual connection's Add goes past the block; None where `node` is no such Add."""

    def of_product(name: str) -> bool:
        node = editor.producer.get(name)
        if node is not None and node.op_type == "Add":
            name = next((i for i in node.input if editor.constant(i) is None), "")
            constant = any(editor.constant(i) is not None for i in node.input)
            node = editor.producer.get(name) if constant else None
        return node is not None and (linear_product(editor, node, fewest_columns=1) or _quantized_product(editor, node))

    if node.op_type != "Add" or any(editor.constant(name) is not None for name in node.input):
        return None
    for name, other in (node.input, reversed(node.input)):
        if of_product(name) and other not in behind(editor, [name]):
            return str(other)
    return None


def _quantized_product(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    """Says whether `node` multiplies activations with a constant that is quantised."""
    made = editor.producer.get(node.input[1]) if node.op_type == "MatMul" else None
    while made is not None and made.op_type in {"QuantizeLinear", "DequantizeLinear"}:
        if editor.constant(made.input[0]) is not None:
            return True
        made = editor.producer.get(made.input[0])
    return False


def behind(editor: GraphEditor, names: Sequence[str]) -> set[str]:
    """Returns the outputs of all nodes that depend on one of `names`, without these."""
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        for node in editor.consumers.get(waiting.pop(), []):
            fresh = [name for name in node.output if name not in reached]
            reached.update(fresh)
            waiting += fresh
    return reached


def ahead(editor: GraphEditor, names: Sequence[str]) -> set[str]:
    """Returns `names` and all computed tensors that they depend on."""
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        node = editor.producer.get(name)
        if node is not None and name not in reached:
            reached.add(name)
            waiting += node.input
    return reached


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yields the nodes of `graph` and of all graphs in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from every_node(attribute.g)
