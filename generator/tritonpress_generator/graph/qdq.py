"""Pairs of QuantizeLinear and DequantizeLinear, which TensorRT fuses into INT8 or FP8 kernels.

Symmetric, as TensorRT wants them: zero points are 0, weights have a scale a column, activations one. Where they go is
in `pair_places.py`. Attention's probabilities end at 1, whatever the texts: to clip them, as a histogram of mostly
small ones suggests, is to forget what a token looks at.

Products that read the same activation share its pair, and its scales where channels are smoothed (`smoothing.py`), so
that they can be fused into one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, helper
from pydantic import Field

from tritonpress_generator import calibration, sensitivity, smoothing
from tritonpress_generator.calibration import FEWEST_TEXTS, Method
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import NO_MATERIAL, GraphMaterial
from tritonpress_generator.infer import Array
from tritonpress_generator.mixed_precision import OPSET
from tritonpress_generator.onnx_graph import GraphEditor, normalized
from tritonpress_generator.pair_places import Places
from tritonpress_generator.quantization import INT8_MAX, symmetric_scale
from tritonpress_generator.recipe_text import Settings
from tritonpress_generator.sampling import spread

READS = "export"
FP8_MAX = 448.0
"""The largest E4M3 number. Source: Micikevicius et al. 2022, "FP8 Formats for Deep Learning"."""


class Config(Settings):
    precision: Literal["int8", "fp8"] = "int8"
    """The type of weights and activations; `fp8` (E4M3) from Ada and Hopper on, and TensorRT 10."""
    calibration: Method = "entropy"
    """How an activation's range is chosen."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """The share of values, in %, that `percentile` does not clip."""
    smooth: bool = True
    """Whether channels are scaled before a product, where that halves its error (`smoothing.py`)."""
    attention: bool = True
    """Whether attention's own products are quantised, or stay in higher precision, each attention whole."""
    residual: bool = True
    """Whether what goes past a block to its residual Add is."""
    exclude: list[str] = Field(default_factory=list)
    """Patterns (`*layer.5/output*`) of the names of products and residual Adds that stay as they are."""
    keep: float | None = Field(default=None, gt=0, le=1)
    """The share of the unquantised graph's metric on held-out examples (`data`) that must be kept: what costs most
    stays in higher precision until it is (`sensitivity.py`). Default: nothing is measured."""
    samples: int = Field(default=256, ge=FEWEST_TEXTS)
    """How many of the task's texts are run to see the ranges."""


def apply(
    model: onnx.ModelProto, config: Config, samples: Sequence[dict[str, Array]], material: GraphMaterial = NO_MATERIAL
) -> onnx.ModelProto:
    """Returns `model` in plain operators with the pairs in it.

    Args:
        model: FP32.
        config: The settings.
        samples: The task's texts as the model's inputs, one sequence each.
        material: Keeps the ranges for the next build of the same; measures the metric where the settings say `keep`.

    Raises:
        InputError: There is nothing to calibrate with, or nothing to quantise, or a pattern is of no node, or the
            metric cannot be measured or kept.
    """
    if not samples:
        raise InputError("qdq: calibration needs at least 1 text, got 0; the task must have texts")
    plain = normalized(model)
    if config.precision == "fp8":
        plain = normalized(onnx.version_converter.convert_version(plain, OPSET))
    samples = spread(samples, config.samples)
    editor = GraphEditor(plain)
    places = _places(editor, config)
    key = calibration.kept_key("qdq", plain, config.model_dump_json(exclude={"keep"}), samples)
    ranges = material.kept.get(key)
    if ranges is None:
        ranges = _calibrated(plain, editor, places, config, samples)
        material.kept.put(key, ranges)

    def made(left_out: Collection[str]) -> onnx.ModelProto:
        return _with_pairs(plain, config, ranges, left_out)

    if config.keep is None:
        return made(())
    chosen = sensitivity.Measured(plain, places.parts(), made, samples, material)
    return made(chosen.left_out(config.keep, key=f"keep {config.keep} {key}", where="qdq"))


def _places(editor: GraphEditor, config: Config, left_out: Collection[str] = ()) -> Places:
    return Places(editor, config.exclude, attention=config.attention, residual=config.residual, left_out=left_out)


def _with_pairs(
    plain: onnx.ModelProto, config: Config, ranges: Mapping[str, Any], left_out: Collection[str]
) -> onnx.ModelProto:
    """Returns a copy of `plain` with the pairs in it, but for the nodes that give one of `left_out`."""
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    editor = GraphEditor(model)
    _Pairs(editor, config, ranges).insert(_places(editor, config, left_out))
    editor.remove_unused()
    return model


def _calibrated(
    model: onnx.ModelProto,
    editor: GraphEditor,
    places: Places,
    config: Config,
    samples: Sequence[Mapping[str, Array]],
) -> dict[str, Any]:
    """Returns the largest magnitude of each quantised tensor, and what the channels of smoothed ones are divided by."""
    observed = calibration.observe(model, list(places.groups), samples)
    scales: dict[str, Any] = {}
    if config.smooth and config.precision == "int8":
        # Layers that share their weights (ALBERT) divide by the same, so that they share the smoothed ones too.
        sharing: dict[tuple[str, ...], list[str]] = {}
        for name, nodes in places.groups.items():
            sharing.setdefault(tuple(node.input[1] for node in nodes), []).append(name)
        for weights, names in sharing.items():
            weight = np.concatenate([np.asarray(editor.constant(name)) for name in weights], axis=1)
            read = smoothing.together([observed[name] for name in names])
            found = smoothing.channel_scales(read, weight, largest_code=INT8_MAX, symmetric=True)
            if found is not None:
                scales |= dict.fromkeys(names, found)
    plain = list(dict.fromkeys([*places.plain(), *(name for name in places.groups if name not in scales)]))
    bounded = dict.fromkeys((name for name in plain if name in places.probabilities), 1.0)
    largest = calibration.largest(model, [name for name in plain if name not in bounded], samples)
    smoothed = {name: observed[name].largest(by) for name, by in scales.items()}
    how: Any = {"method": config.calibration, "percentile": config.percentile}
    largest = calibration.clipped(model, largest, samples, divided=lambda _, tensor: tensor, **how)
    smoothed = calibration.clipped(model, smoothed, samples, divided=lambda name, x: x / scales[name], **how)
    return {
        "largest": largest | bounded,
        "smoothed": smoothed,
        "scales": {name: [float(value) for value in by] for name, by in scales.items()},
    }


class _Pairs:
    """Puts the pairs into a graph."""

    def __init__(self, editor: GraphEditor, config: Config, ranges: Mapping[str, Any]) -> None:
        self._editor = editor
        self._fp8 = config.precision == "fp8"
        self._ranges = ranges
        self._made: dict[tuple[str, bool], str] = {}

    def insert(self, places: Places) -> None:
        """Exchanges the inputs of all nodes that are to read quantised values."""
        for name, nodes in places.groups.items():
            source = self._activation(name, smoothed=name in self._ranges["scales"])
            for node in nodes:
                node.input[0] = source
                node.input[1] = self._weight(node.input[1], name)
        for node, inputs in places.others():
            for place in inputs:
                node.input[place] = self._activation(node.input[place], smoothed=False)

    def _activation(self, name: str, *, smoothed: bool) -> str:
        """Returns the name of the activation `name` behind its pair."""
        if (name, smoothed) in self._made:
            return self._made[name, smoothed]
        prefix = f"{name}/{'smoothed/' if smoothed else ''}qdq"
        nodes, source = [], name
        if smoothed:
            by = np.array(self._ranges["scales"][name], np.float32)
            inverse = self._editor.add_constant(f"{prefix}/inverse_scales", 1 / by)
            source = f"{prefix}/smoothed"
            nodes.append(helper.make_node("Mul", [name, inverse], [source], name=source))
        largest = self._ranges["smoothed" if smoothed else "largest"][name]
        pair, result = self._pair(source, self._scale(np.array(largest)), prefix, axis=None)
        self._after(name, [*nodes, *pair])
        self._made[name, smoothed] = result
        return result

    def _weight(self, name: str, source: str) -> str:
        """Returns the name of the weight `name`, which meets the activation `source`, behind its pair."""
        by = self._ranges["scales"].get(source)
        # Layers may share a weight (ALBERT), but not always the scales of what it meets.
        prefix = f"{name}/qdq" if by is None else f"{name}/{source}/qdq"
        if (prefix, False) in self._made:
            return self._made[prefix, False]
        weight = np.asarray(self._editor.constant(name))
        if by is not None:
            weight = weight * np.array(by, np.float32)[:, None]
        scales = self._scale(np.abs(weight).max(axis=0))
        tensor = self._editor.add_constant(f"{prefix}/weight", weight)
        pair, result = self._pair(tensor, scales, prefix, axis=1)
        for node in reversed(pair):
            self._editor.model.graph.node.insert(0, node)
        self._made[prefix, False] = result
        return result

    def _pair(self, source: str, scale: Array, prefix: str, *, axis: int | None) -> tuple[list[onnx.NodeProto], str]:
        """Returns the pair's nodes, and the name of what it gives."""
        zeros = np.zeros(scale.shape, np.int8)
        inputs = [self._editor.add_constant(f"{prefix}/scale", scale)]
        if self._fp8:
            zero = helper.make_tensor(
                f"{prefix}/zero_point", TensorProto.FLOAT8E4M3FN, scale.shape, np.zeros(scale.shape).ravel()
            )
            self._editor.model.graph.initializer.append(zero)
            inputs.append(zero.name)
        else:
            inputs.append(self._editor.add_constant(f"{prefix}/zero_point", zeros))
        settings: dict[str, Any] = {} if axis is None else {"axis": axis}
        codes, result = f"{prefix}/codes", f"{prefix}/values"
        quantize = helper.make_node("QuantizeLinear", [source, *inputs], [codes], name=f"{prefix}/quantize", **settings)
        back = helper.make_node("DequantizeLinear", [codes, *inputs], [result], name=f"{prefix}/dequantize", **settings)
        return [quantize, back], result

    def _scale(self, largest: Array) -> Array:
        return symmetric_scale(largest, FP8_MAX if self._fp8 else INT8_MAX)

    def _after(self, name: str, new: list[onnx.NodeProto]) -> None:
        """Puts `new` behind the node that gives the tensor `name`."""
        nodes = self._editor.model.graph.node
        place = next(i for i, node in enumerate(nodes) if name in node.output)
        for node in reversed(new):
            nodes.insert(place + 1, node)
