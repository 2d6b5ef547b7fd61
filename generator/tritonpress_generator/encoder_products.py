"""Which products of a graph are an encoder's: those with constant weights, and attention's own."""

from __future__ import annotations

import onnx

from tritonpress_generator.onnx_graph import GraphEditor, behind, linear_product, residuals

_TO_SOFTMAX = {"Add", "Mul", "Div", "Where", "Cast"}


def encoder_products(editor: GraphEditor, *, fewest_columns: int) -> list[onnx.NodeProto]:
    """Returns the products with constant weights, and attention's own, of what is in front of the task's head.

    The head is what is behind the last residual connection.
    """
    adds = residuals(editor)
    head = behind(editor, adds[-1].output) if adds else set()
    of_attention = set().union(*attention_products(editor).values())
    return [
        node
        for node in editor.model.graph.node
        if node.output[0] not in head
        and node.input
        and editor.constant(node.input[0]) is None
        and (node.output[0] in of_attention or linear_product(editor, node, fewest_columns=fewest_columns))
    ]


def attention_products(editor: GraphEditor) -> dict[str, set[str]]:
    """Returns the answers of the products in front of and behind each Softmax, by the Softmax's."""
    return {node.output[0]: _around(editor, node) for node in editor.model.graph.node if node.op_type == "Softmax"}


def views(editor: GraphEditor, name: str) -> set[str]:
    """Returns `name`, and what Reshape makes of that tensor."""
    shaped = [node for node in editor.consumers.get(name, []) if node.op_type == "Reshape" and node.input[0] == name]
    return {name}.union(*(views(editor, node.output[0]) for node in shaped))


def _around(editor: GraphEditor, softmax: onnx.NodeProto) -> set[str]:
    # DeBERTa's products are of three dimensions, its Softmax of four.
    readers = [node for name in views(editor, softmax.output[0]) for node in editor.consumers.get(name, [])]
    found = {node.output[0] for node in readers if node.op_type == "MatMul"}
    waiting = [softmax.input[0]]
    while waiting:
        node = editor.producer.get(waiting.pop())
        if node is not None and node.op_type == "MatMul" and all(editor.constant(i) is None for i in node.input):
            found.add(node.output[0])
        elif node is not None and node.op_type == "Reshape":
            waiting.append(node.input[0])
        elif node is not None and node.op_type in _TO_SOFTMAX:
            waiting += node.input
    return found
