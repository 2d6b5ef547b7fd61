"""INT8 for the CPU: unsigned activations with fixed, calibrated scales, signed weights with a scale a channel.

Activations are unsigned because ONNX Runtime's products of signed with signed bytes are an order of magnitude slower.
Their scales are fixed at build time: dynamic quantisation takes its scales over a whole batch, so that an answer
depends on its neighbours. Weights have 7 bits, unless the recipe says otherwise: 8 saturate in the products of a CPU
without VNNI, so that what was gated on one CPU would not be what another one answers. Channels that are much larger
than the others are scaled down before a product, and its weights up (`smoothing.py`).

Every product of activations with a constant weight becomes one QuantizeLinear and one
`com.microsoft.MatMulIntegerToFloat` that adds the bias; attention's own products, softmax and LayerNormalization stay
in FP32. So do products of a few columns, such as a head that gives a start and an end score: they save nothing, and
their answer is the model's. Embedding tables keep a scale a row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper
from pydantic import Field

from tritonpress_generator import calibration, sensitivity, smoothing
from tritonpress_generator.calibration import FEWEST_TEXTS, Method
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import NO_MATERIAL, GraphMaterial
from tritonpress_generator.infer import Array
from tritonpress_generator.onnx_graph import GraphEditor, linear_product
from tritonpress_generator.quantization import INT7_MAX, INT8_MAX, quantize_symmetric
from tritonpress_generator.recipe_text import Settings
from tritonpress_generator.sampling import spread

READS = "products"
_SMALLEST_TABLE = 256
FEWEST_COLUMNS = 16


class Config(Settings):
    precision: Literal["int8"] = "int8"
    """The type of the weights and activations of matrix products."""
    calibration: Method = "min_max"
    """How an activation's range is chosen; what is clipped is so on both sides of 0."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """The share of values, in %, that `percentile` does not clip."""
    reduce_range: bool = True
    """Whether weights of products have 7 bits, which no CPU saturates, rather than 8."""
    smooth: bool = True
    """Whether channels are scaled before a product, where that halves its error (`smoothing.py`)."""
    exclude: list[str] = Field(default_factory=list)
    """Patterns (`*layer.5/output*`) of the names of products that stay in FP32."""
    keep: float | None = Field(default=None, gt=0, le=1)
    """The share of the unquantised graph's metric on held-out examples (`data`) that must be kept: the products that
    cost most stay in FP32 until it is (`sensitivity.py`). Default: nothing is measured."""
    samples: int = Field(default=256, ge=FEWEST_TEXTS)
    """How many of the task's texts are run to see the ranges."""


def apply(
    model: onnx.ModelProto, config: Config, samples: Sequence[dict[str, Array]], material: GraphMaterial = NO_MATERIAL
) -> onnx.ModelProto:
    """Returns `model` with quantised products and embedding tables.

    Args:
        model: FP32.
        config: The settings.
        samples: The task's texts as the model's inputs, one sequence each.
        material: Measures the metric, and keeps what was chosen by it, where the settings say `keep`.

    Raises:
        InputError: There is nothing to calibrate with, or nothing to quantise, or a pattern is of no product, or the
            metric cannot be measured or kept.
    """
    if not samples:
        raise InputError("quantize: calibration needs at least 1 text, got 0; the task must have texts")
    samples = spread(samples, config.samples)
    editor = GraphEditor(model)
    products = [node for node in model.graph.node if linear_product(editor, node, fewest_columns=FEWEST_COLUMNS)]
    if not products:
        raise InputError("quantize: the graph has no product with constant weights; quantise it only once")
    products = calibration.included(products, config.exclude, where="quantize")
    grids = _calibrated(model, editor, products, config, samples)

    def made(left_out: Collection[str]) -> onnx.ModelProto:
        left = {product: grid for product, grid in grids.items() if product not in left_out}
        return _quantized(model, config, left)

    if config.keep is None:
        return made(())
    parts = {node.name or node.output[0]: [node.output[0]] for node in products}
    key = calibration.kept_key("quantize", model, config.model_dump_json(), samples)
    return made(
        sensitivity.Measured(model, parts, made, samples, material).left_out(config.keep, key=key, where="quantize")
    )


@dataclass(frozen=True)
class _Grid:
    """The codes of what a product reads."""

    channels: smoothing.Floats | None
    """What its channels are divided by before."""
    scale: np.float32
    zero_point: np.uint8


def _calibrated(
    model: onnx.ModelProto,
    editor: GraphEditor,
    products: Sequence[onnx.NodeProto],
    config: Config,
    samples: Sequence[Mapping[str, Array]],
) -> dict[str, _Grid]:
    """Returns the codes of what each of `products` reads, by what it gives."""
    tensors = {node.output[0]: node.input[0] for node in products}
    observed = calibration.observe(model, list(tensors.values()), samples)
    channels = _channel_scales(editor, products, observed, config) if config.smooth else {}
    one = np.ones(1, np.float32)
    by = {name: one if (scales := channels.get(name)) is None else scales for name in tensors}
    largest = calibration.clipped(
        model,
        {name: observed[tensor].largest(by[name]) for name, tensor in tensors.items()},
        samples,
        method=config.calibration,
        percentile=config.percentile,
        divided=lambda name, tensor: tensor / by[name],
        tensors=tensors,
    )
    return {
        name: _Grid(channels.get(name), *observed[tensor].parameters(by[name], largest[name]))
        for name, tensor in tensors.items()
    }


def _quantized(model: onnx.ModelProto, config: Config, grids: Mapping[str, _Grid]) -> onnx.ModelProto:
    """Returns a copy of `model` with quantised embedding tables and products, which give one of `grids`."""
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    editor = GraphEditor(quantized)
    for node in [node for node in quantized.graph.node if node.output[0] in grids]:
        _quantize_product(editor, node, grids[node.output[0]], config)
    for node in [node for node in quantized.graph.node if node.op_type == "Gather"]:
        quantize_table(editor, node)
    editor.use_opset("com.microsoft", 1)
    editor.remove_unused()
    return quantized


def _channel_scales(
    editor: GraphEditor, products: Sequence[onnx.NodeProto], observed: Mapping[str, smoothing.Observed], config: Config
) -> dict[str, smoothing.Floats | None]:
    """Returns what the channels of each product's activation are divided by, by what the product gives.

    Layers that share a weight (ALBERT) divide by the same, so that they share its codes too.
    """
    sharing: dict[str, list[onnx.NodeProto]] = {}
    for node in products:
        sharing.setdefault(editor.constants[node.input[1]].name or node.input[1], []).append(node)
    found: dict[str, smoothing.Floats | None] = {}
    for nodes in sharing.values():
        read = smoothing.together([observed[node.input[0]] for node in nodes])
        weight = np.asarray(editor.constant(nodes[0].input[1]))
        scales = smoothing.channel_scales(read, weight, largest_code=_largest_code(config))
        found |= dict.fromkeys((node.output[0] for node in nodes), scales)
    return found


def _largest_code(config: Config) -> int:
    return INT7_MAX if config.reduce_range else INT8_MAX


def _quantize_product(editor: GraphEditor, node: onnx.NodeProto, grid: _Grid, config: Config) -> None:
    """Replaces a MatMul, and the bias's Add behind it, by QuantizeLinear and MatMulIntegerToFloat."""
    name = node.name or node.output[0]
    weight = np.asarray(editor.constant(node.input[1]))
    source, nodes = node.input[0], []
    if grid.channels is not None:
        source = f"{name}/int8/smoothed"
        inverse = editor.add_constant(f"{name}/int8/inverse_scales", 1 / grid.channels)
        nodes.append(helper.make_node("Mul", [node.input[0], inverse], [source], name=f"{name}/int8/smooth"))
        weight = weight * grid.channels[:, None]
    codes, weight_scales = quantize_symmetric(weight, axis=1, largest_code=_largest_code(config))
    constants: dict[str, Array] = {
        "scale": np.array(grid.scale),
        "zero_point": np.array(grid.zero_point),
        "weight": codes,
        "weight_scales": weight_scales,
    }
    names = {key: editor.add_constant(f"{name}/int8/{key}", value) for key, value in constants.items()}
    inputs = [f"{name}/int8/input", names["weight"], names["scale"], names["weight_scales"], names["zero_point"], ""]
    output = node.output[0]
    add = editor.only_consumer(output, "Add")
    bias = next((i for i in add.input if (c := editor.constant(i)) is not None and c.ndim == 1), None) if add else None
    if add is not None and bias is not None:
        inputs.append(bias)
        output = add.output[0]
        editor.model.graph.node.remove(add)
    quantized = helper.make_node(
        "QuantizeLinear",
        [source, names["scale"], names["zero_point"]],
        [inputs[0]],
        name=f"{name}/int8/quantize",
    )
    product = helper.make_node("MatMulIntegerToFloat", inputs, [output], name=f"{name}/int8", domain="com.microsoft")
    editor.replace(node, [*nodes, quantized, product])
    editor.refresh()


def quantize_table(
    editor: GraphEditor, node: onnx.NodeProto, *, largest_code: int = INT8_MAX, power_of_two: bool = False
) -> None:
    """Replaces a look-up in a large FP32 table by one of codes and one of the rows' scales."""
    table = editor.constant(node.input[0])
    if table is None or table.ndim != 2 or table.dtype != np.float32 or table.shape[0] < _SMALLEST_TABLE:
        return
    name = node.name or node.output[0]
    codes, scales = quantize_symmetric(table, axis=0, largest_code=largest_code, power_of_two=power_of_two)
    prefix = f"{name}/{codes.dtype.name}"
    code_table = editor.add_constant(f"{prefix}/table", codes)
    scale_table = editor.add_constant(f"{prefix}/scales", scales[:, None])
    make = helper.make_node
    editor.replace(
        node,
        [
            make("Gather", [code_table, node.input[1]], [f"{prefix}/codes"], axis=0),
            make("Cast", [f"{prefix}/codes"], [f"{prefix}/values"], to=TensorProto.FLOAT),
            make("Gather", [scale_table, node.input[1]], [f"{prefix}/row_scales"], axis=0),
            make("Mul", [f"{prefix}/values", f"{prefix}/row_scales"], [node.output[0]]),
        ],
    )
    editor.refresh()
