"""Edits an ONNX graph: who makes a tensor, who reads it, what is constant, and what nothing needs any more."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

OPSET = 17
IR_VERSION = 8
DOMAIN = "tritonpress"
"""Of the functions that the exports write."""


class GraphEditor:
    """A view of `model.graph` that is edited in place; the maps are those of the moment `refresh` was last called."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
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
        """Adds `value` as an initializer and returns its name."""
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
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
