"""Where pairs of QuantizeLinear and DequantizeLinear go, so that TensorRT fuses them.

Quantised are both inputs of every product, attention's own included (its fused INT8 kernel wants all of them:
https://github.com/NVIDIA/TensorRT/issues/4167), and of a residual Add the input that skips the block: the block's own
answer is what a product gives, and TensorRT, which fuses the Add into that product, wants no pair between the two.
Biases never, nor what is behind the last residual connection, the task's head. Source of the placement: TensorRT's
guide to explicit quantisation, "Q/DQ layer-placement recommendations".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx

from tritonpress_generator import calibration
from tritonpress_generator.encoder_products import attention_products, encoder_products, views
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph.quantize import FEWEST_COLUMNS
from tritonpress_generator.onnx_graph import GraphEditor, residuals, skipping


class Places:
    """Which tensors are quantised, and for whom."""

    def __init__(
        self,
        editor: GraphEditor,
        exclude: Sequence[str],
        *,
        attention: bool,
        residual: bool,
        left_out: Collection[str] = (),
    ) -> None:
        """Finds them.

        Args:
            editor: Of a graph without pairs.
            exclude: Patterns of the names of nodes that stay as they are.
            attention: Whether attention's own products are quantised.
            residual: Whether residual connections are.
            left_out: Names of what nodes give that stay as they are.

        Raises:
            InputError: There is nothing to quantise, or a pattern is of no node.
        """
        adds = residuals(editor)
        products = encoder_products(editor, fewest_columns=FEWEST_COLUMNS)
        linear = {node.output[0] for node in products if editor.constant(node.input[1]) is not None}
        if not linear:
            raise InputError("qdq: the graph has no product with constant weights; there is nothing to quantise")
        inner = {node.output[0] for node in products} - linear
        of_softmax = attention_products(editor)
        own = [found & inner for found in of_softmax.values() if found & inner] if attention else []
        wanted = linear.union(*own, (node.output[0] for node in adds if residual))
        nodes = [node for node in editor.model.graph.node if node.output[0] in wanted]
        included = calibration.included(nodes, exclude, where="qdq", kind="product or residual")
        self._found = [node for node in included if node.output[0] not in left_out]
        self._linear, self._own = linear, own
        self._adds = {node.output[0] for node in adds}
        self.probabilities = {view for name in of_softmax for view in views(editor, name)}
        """What every Softmax gives, in any shape."""
        self.skipping = {node.output[0]: skipping(editor, node) for node in adds}
        """Of each residual connection what goes past its block, by what the Add gives."""
        self.groups: dict[str, list[onnx.NodeProto]] = {}
        """The products with weights that read an activation, by its name."""
        for node in self._found:
            if node.output[0] in linear:
                self.groups.setdefault(node.input[0], []).append(node)

    def others(self) -> list[tuple[onnx.NodeProto, list[int]]]:
        """Returns the nodes that read quantised activations alone, and which of their inputs these are."""
        found = []
        for node in self._found:
            if node.output[0] in self._adds:
                found.append((node, [i for i, name in enumerate(node.input) if name == self.skipping[node.output[0]]]))
            elif node.output[0] not in self._linear:
                found.append((node, [*range(len(node.input))]))
        return found

    def plain(self) -> list[str]:
        """Returns the activations that are quantised as they are."""
        return list(dict.fromkeys(node.input[i] for node, places in self.others() for i in places))

    def parts(self) -> dict[str, list[str]]:
        """Returns what can be left out for itself, by a name: what its nodes give.

        These are the products of one activation, which share its pair; an attention's products, which are one kernel;
        and a residual connection.
        """
        found = {node.output[0]: node for node in self._found}
        parts = {_label(nodes): [node.output[0] for node in nodes] for nodes in self.groups.values()}
        for number, outputs in enumerate(self._own):
            if inside := sorted(outputs & set(found)):
                parts[f"attention {number}"] = inside
        parts |= {node.name: [name] for name, node in found.items() if name in self._adds}
        return parts


def _label(nodes: Sequence[onnx.NodeProto]) -> str:
    more = f" and {len(nodes) - 1} more of its activation" if len(nodes) > 1 else ""
    return f"{nodes[0].name}{more}"
