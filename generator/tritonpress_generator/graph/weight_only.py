"""INT8 or INT4 weights under FP32 activations: small files, nothing to calibrate.

Every product of activations with a constant weight becomes ONNX Runtime's `com.microsoft.MatMulNBits`: the weight's
rows lie in blocks, each column of a block has a scale of its own. Attention's own products, products of a few columns
and all that is no product stay in FP32, as in `quantize`. With `accuracy_level: 4` the kernel rounds a row's
activations to bytes, each block by its own largest value: a row's answer depends on no other row.

Embedding tables become INT8 with a scale a row, in ONNX's plain operators. Fewer bits of theirs
(`com.microsoft.GatherBlockQuantized`) need ONNX Runtime 1.20 and ONNX's opset 21, beyond what Triton 24.10 has.

OpenVINO reads the operator too and keeps the codes, so that one graph serves both. NNCF's `compress_weights` is not
used: of an ONNX graph its INT4 answers something else, and of OpenVINO's its codes are no nearer (NNCF 3.4).

Source of the scheme, rounding to nearest in blocks: Dettmers and Zettlemoyer 2023, "The case for 4-bit precision".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from pydantic import Field

from tritonpress_generator import calibration, sensitivity
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import NO_MATERIAL, GraphMaterial
from tritonpress_generator.graph.quantize import FEWEST_COLUMNS, quantize_table
from tritonpress_generator.infer import Array
from tritonpress_generator.onnx_graph import GraphEditor, linear_product
from tritonpress_generator.quantization import quantize_blocks
from tritonpress_generator.recipe_text import Settings

READS = "products"


class Config(Settings):
    bits: Literal[4, 8]
    """Of a weight's code."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """How many of a column's weights share a scale."""
    symmetric: bool = False
    """Whether 0 is the middle code, or a block has a zero point of its own."""
    accuracy_level: Literal[1, 4] = 4
    """What products are computed in: 4 in bytes, 1 in FP32."""
    embeddings: bool = True
    """Whether embedding tables become INT8, with a scale a row."""
    exclude: list[str] = Field(default_factory=list)
    """Patterns (`*layer.5/output*`) of the names of products that stay in FP32."""
    keep: float | None = Field(default=None, gt=0, le=1)
    """The share of the unquantised graph's metric on held-out examples (`data`) that must be kept: the products that
    cost most stay in FP32 until it is (`sensitivity.py`). Default: nothing is measured."""


def apply(
    model: onnx.ModelProto, config: Config, samples: Sequence[dict[str, Array]], material: GraphMaterial = NO_MATERIAL
) -> onnx.ModelProto:
    """Returns `model` with codes for the weights of its products, and for its embedding tables.

    Args:
        model: FP32.
        config: The settings.
        samples: The task's texts as the model's inputs; only `keep` asks them.
        material: Measures the metric, and keeps what was chosen by it, where the settings say `keep`.

    Raises:
        InputError: There is nothing to quantise, a pattern is of no product, or the metric cannot be measured.
        GateError: The metric is kept with none of the products quantised.
    """
    editor = GraphEditor(model)
    products = [node for node in model.graph.node if linear_product(editor, node, fewest_columns=FEWEST_COLUMNS)]
    if not products:
        raise InputError("weight_only: the graph has no product with constant FP32 weights; quantise it only once")
    products = calibration.included(products, config.exclude, where="weight_only")

    def made(left_out: Collection[str]) -> onnx.ModelProto:
        return _compressed(model, config, {node.output[0] for node in products}.difference(left_out))

    if config.keep is None:
        return made(())
    parts = {node.name or node.output[0]: [node.output[0]] for node in products}
    key = calibration.kept_key("weight_only", model, config.model_dump_json(), samples)
    return made(
        sensitivity.Measured(model, parts, made, samples, material).left_out(config.keep, key=key, where="weight_only")
    )


def _compressed(model: onnx.ModelProto, config: Config, products: Collection[str]) -> onnx.ModelProto:
    """Returns a copy of `model` with codes in the tables and in the products that give one of `products`."""
    compressed = onnx.ModelProto()
    compressed.CopyFrom(model)
    editor = GraphEditor(compressed)
    for node in [node for node in compressed.graph.node if node.output[0] in products]:
        _compress(editor, node, config)
    if config.embeddings:
        for node in [node for node in compressed.graph.node if node.op_type == "Gather"]:
            quantize_table(editor, node)
    editor.use_opset("com.microsoft", 1)
    editor.refresh()
    editor.remove_unused()
    return compressed


def _compress(editor: GraphEditor, node: onnx.NodeProto, config: Config) -> None:
    """Replaces a MatMul by MatMulNBits."""
    weight = np.asarray(editor.constant(node.input[1]))
    rows, columns = weight.shape
    codes, scales, zero_points = quantize_blocks(
        weight, bits=config.bits, block_size=config.block_size, symmetric=config.symmetric
    )
    prefix = f"{node.name or node.output[0]}/int{config.bits}"
    constants: dict[str, Array] = {"weight": _packed(codes, config.bits), "scales": scales.ravel()}
    if not config.symmetric:
        constants["zero_points"] = _packed(zero_points, config.bits).ravel()
    names = [editor.add_constant(f"{prefix}/{name}", value) for name, value in constants.items()]
    product = helper.make_node(
        "MatMulNBits",
        [node.input[0], *names],
        [node.output[0]],
        name=prefix,
        domain="com.microsoft",
        K=rows,
        N=columns,
        bits=config.bits,
        block_size=config.block_size,
        accuracy_level=config.accuracy_level,
    )
    editor.replace(node, [product])


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Returns `codes` as bytes along the last axis, of two half bytes the first in the lower bits."""
    if bits == 8:
        return codes
    even = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    return even[..., ::2] | even[..., 1::2] << np.uint8(4)
