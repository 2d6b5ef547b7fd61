"""Fixed point of 8 or 16 bits: signed codes of which 0 is 0, and scales that are fixed when the engine is built.

Every product of activations with a constant weight reads pairs of QuantizeLinear and DequantizeLinear: activations have
one scale each, weights, stored as codes, one a column, embedding tables one a row. Attention's own products, softmax,
normalisations and products of a few columns stay in FP32, as in `quantize`. What ONNX Runtime makes of the pairs:

- 8 bits: its `MatMulIntegerToFloat`, integer products. Activations are UINT8 with 128 for 0, and weights have 7 bits,
  for the reasons that `quantize` has. `quantize` fits its range to where the values lie, and is more accurate.
- 16 bits: no CPU kernel takes such codes (`MatMulInteger16` adds up in 32 bits, which three products of full range
  overflow), so that products are computed in FP32. The file is half of FP32's, and of the weights only those of one
  product at a time are FP32 in memory; it is slower than FP32, since they are converted for every execution.

With `power_of_two_scales` a code times its scale is a shift: fixed point in the narrow sense, as DSPs have it.
Source: Jacob et al. 2018 (`quantization.py`), with zero points of 0; scales that are powers of two: Jain et al. 2020,
"Trained Quantization Thresholds for Accurate and Efficient Fixed-Point Inference of Deep Neural Networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper
from pydantic import Field

from tritonpress_generator import calibration
from tritonpress_generator.calibration import FEWEST_TEXTS
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import NO_MATERIAL, GraphMaterial
from tritonpress_generator.graph.quantize import FEWEST_COLUMNS, quantize_table
from tritonpress_generator.infer import Array
from tritonpress_generator.onnx_graph import GraphEditor, linear_product
from tritonpress_generator.quantization import INT7_MAX, INT8_MAX, INT16_MAX, quantize_symmetric, symmetric_scale
from tritonpress_generator.recipe_text import Settings
from tritonpress_generator.sampling import spread

READS = "products"
_ACTIVATIONS: dict[int, tuple[int, Array]] = {
    8: (INT8_MAX, np.array(128, np.uint8)),
    16: (INT16_MAX // 2, np.array(0, np.int16)),
}
"""The code of the largest value that was seen, counted from that of 0, and the code of 0. Of 16 bits one is kept for
texts with larger values than the samples': where they are cut off, that is the largest error by far."""
_WEIGHTS = {8: INT7_MAX, 16: INT16_MAX}
_TABLES = {8: INT8_MAX, 16: INT16_MAX}
_DOMAIN = {8: "", 16: "com.microsoft"}
"""ONNX's operators take 16 bits from opset 21 on; ONNX Runtime's own of the same names, of the exports' opset too."""


class Config(Settings):
    bits: Literal[8, 16]
    """Of a code."""
    power_of_two_scales: bool = False
    """Whether every scale is a power of two."""
    exclude: list[str] = Field(default_factory=list)
    """Patterns (`*layer.5/output*`) of the names of products that stay in FP32."""
    samples: int = Field(default=256, ge=FEWEST_TEXTS)
    """How many of the task's texts are run to see the ranges."""


def apply(
    model: onnx.ModelProto, config: Config, samples: Sequence[dict[str, Array]], material: GraphMaterial = NO_MATERIAL
) -> onnx.ModelProto:
    """Returns `model` with pairs in front of its products, and weights and embedding tables as codes.

    Args:
        model: FP32.
        config: The settings.
        samples: The task's texts as the model's inputs, one sequence each.
        material: Not used: the ranges are seen in seconds.

    Raises:
        InputError: There is nothing to calibrate with, or nothing to quantise, or a pattern is of no product.
    """
    if not samples:
        raise InputError("fixed_point: calibration needs at least 1 text, got 0; the task must have texts")
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    editor = GraphEditor(fixed)
    products = [node for node in fixed.graph.node if linear_product(editor, node, fewest_columns=FEWEST_COLUMNS)]
    if not products:
        raise InputError("fixed_point: the graph has no product with constant FP32 weights; quantise it only once")
    products = calibration.included(products, config.exclude, where="fixed_point")
    largest = calibration.largest(model, [node.input[0] for node in products], spread(samples, config.samples))
    pairs = _Pairs(editor, config)
    weights: list[onnx.NodeProto] = []
    for node in products:
        weights += pairs.weight(node)
        editor.replace(node, [*pairs.activation(node, largest[node.input[0]]), node])
    # In front of all others: of what a product reads, ONNX Runtime computes the node with the highest index first, and
    # so a weight right before its product. Behind the activation, all weights would be FP32 before the first product.
    for node in weights:
        fixed.graph.node.insert(0, node)
    for node in [node for node in fixed.graph.node if node.op_type == "Gather"]:
        quantize_table(editor, node, largest_code=_TABLES[config.bits], power_of_two=config.power_of_two_scales)
    if _DOMAIN[config.bits]:
        editor.use_opset(_DOMAIN[config.bits], 1)
    editor.refresh()
    editor.remove_unused()
    return fixed


class _Pairs:
    """Makes what a product reads; products that read the same share it."""

    def __init__(self, editor: GraphEditor, config: Config) -> None:
        self._editor = editor
        self._bits = config.bits
        self._power_of_two = config.power_of_two_scales
        self._domain = _DOMAIN[config.bits]
        self._made: set[str] = set()

    def activation(self, node: onnx.NodeProto, largest: float) -> list[onnx.NodeProto]:
        """Returns what gives the product's activation as its codes have it, unless an earlier product has made it."""
        largest_code, zero = _ACTIVATIONS[self._bits]
        source = node.input[0]
        prefix = f"{source}/fixed_point"
        node.input[0] = f"{prefix}/values"
        if prefix in self._made:
            return []
        self._made.add(prefix)
        scale = symmetric_scale(np.array(largest), largest_code, power_of_two=self._power_of_two)
        constants = [self._constant(f"{prefix}/scale", scale), self._constant(f"{prefix}/zero_point", zero)]
        return [
            self._node("QuantizeLinear", [source, *constants], f"{prefix}/codes"),
            self._node("DequantizeLinear", [f"{prefix}/codes", *constants], f"{prefix}/values"),
        ]

    def weight(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Returns what gives the product's weight from its codes, unless an earlier product has made it."""
        prefix = f"{node.input[1]}/fixed_point"
        weight = self._editor.constant(node.input[1])
        node.input[1] = f"{prefix}/values"
        if weight is None or prefix in self._made:
            return []
        self._made.add(prefix)
        codes, scales = quantize_symmetric(
            weight, axis=1, largest_code=_WEIGHTS[self._bits], power_of_two=self._power_of_two
        )
        constants = {"codes": codes, "scales": scales, "zero_points": np.zeros(scales.shape, codes.dtype)}
        names = [self._constant(f"{prefix}/{name}", value) for name, value in constants.items()]
        return [self._node("DequantizeLinear", names, f"{prefix}/values", axis=1)]

    def _constant(self, name: str, value: Array) -> str:
        return self._editor.add_constant(name, value)

    def _node(self, op_type: str, inputs: list[str], output: str, **settings: Any) -> onnx.NodeProto:
        return helper.make_node(op_type, inputs, [output], name=output, domain=self._domain, **settings)
