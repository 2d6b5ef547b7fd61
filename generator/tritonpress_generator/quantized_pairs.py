"""Pairs of QuantizeLinear and DequantizeLinear in a graph that was made of another one: who reads them, and back again.

The two graphs know each other by the names of nodes and of constants: a node that was quantised has the name that it
had, and reads something else. So what it has read before undoes all that was done for it: pairs, smoothing, bias.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tritonpress_generator.onnx_graph import GraphEditor

_MOVES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Tile", "Slice", "Split", "Concat", "Mul", "Div"}
"""Between a pair and the product that it was put in for: they move or scale values."""


def reading_pairs(model: onnx.ModelProto, before: onnx.ModelProto, names: Sequence[str]) -> list[str]:
    """Returns those of the nodes `names` that read a pair in `model`.

    Args:
        model: With pairs.
        before: What it was made of.
        names: Of nodes that both have.
    """
    editor, nodes, old = _views(model, before)

    def reads(name: str) -> bool:
        makers = (editor.producer.get(node.input[place]) for node, place in _changed(editor, nodes[name], old))
        return any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)

    return [name for name in names if reads(name)]


def undone(model: onnx.ModelProto, before: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Returns `model` with the nodes `names`, and the biases behind them, as they are in `before`.

    Args:
        model: With pairs.
        before: What it was made of.
        names: Of nodes that both have.
    """
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    there = {tensor.name for tensor in plain.graph.initializer}
    plain.graph.initializer.extend(tensor for tensor in before.graph.initializer if tensor.name not in there)
    editor, nodes, old = _views(plain, before)
    of_before = GraphEditor(before)
    for name in names:
        for node, place in list(_changed(editor, nodes[name], old)):
            node.input[place] = old[node.name][place]
        add = of_before.only_consumer(nodes[name].output[0], "Add")
        if add is not None:
            nodes[add.name].input[:] = old[add.name]
    # What only a shape is taken of needs no pair.
    for node in plain.graph.node:
        if node.op_type == "Shape":
            node.input[:] = old[node.name]
    editor.refresh()
    editor.remove_unused()
    return plain


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns `model` with the codes of its quantised constants in place of these; equal ones are there once.

    FP8 stays a pair: its rounding is left to who runs the graph.
    """
    short = onnx.ModelProto()
    short.CopyFrom(model)
    editor = GraphEditor(short)
    made: dict[tuple[str, bytes, bytes], str] = {}
    same: dict[str, str] = {}
    for node in [node for node in short.graph.node if node.op_type == "QuantizeLinear"]:
        source, scale, zero_point = (editor.constant(name) for name in node.input)
        if source is None or scale is None or zero_point is None or zero_point.dtype not in (np.int8, np.uint8):
            continue
        key = (node.input[0], scale.tobytes(), zero_point.tobytes())
        if key not in made:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            made[key] = editor.add_constant(f"{node.output[0]}/codes", _codes(source, scale, zero_point, axis))
        same[node.output[0]] = made[key]
        short.graph.node.remove(node)
    for node in short.graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
    editor.refresh()
    editor.remove_unused()
    return short


def described(model: onnx.ModelProto, before: onnx.ModelProto) -> dict[str, Any]:
    """Returns what JSON can hold and `rebuilt` makes a graph like `model` of: all but the weights of `before`.

    A weight whose rows were scaled is the weight and the scales.
    """
    small = onnx.ModelProto()
    small.CopyFrom(model)
    del small.graph.initializer[:], small.graph.value_info[:]
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    renamed: dict[str, str] = {}
    rows: dict[str, Any] = {}
    for tensor in model.graph.initializer:
        value, old = numpy_helper.to_array(tensor), known.get(tensor.name)
        if old is not None and old.dtype == value.dtype and np.array_equal(old, value):
            continue
        name = tensor.name if old is None else renamed.setdefault(tensor.name, f"{tensor.name}/changed")
        scales = None if old is None else _row_scales(old, value)
        if scales is None:
            small.graph.initializer.append(numpy_helper.from_array(value, name))
        else:
            rows[name] = {"of": tensor.name, "scales": scales.tolist()}
    for node in small.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    return {"graph": base64.b64encode(small.SerializeToString(deterministic=True)).decode(), "rows": rows}


def rebuilt(description: dict[str, Any], before: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the graph that was `described`, with the constants of `before` beside its own."""
    model = onnx.ModelProto.FromString(base64.b64decode(description["graph"]))
    known = {tensor.name: tensor for tensor in before.graph.initializer}
    model.graph.initializer.extend(before.graph.initializer)
    for name, scaled in description["rows"].items():
        scales = np.array(scaled["scales"], np.float32)
        model.graph.initializer.append(
            numpy_helper.from_array(numpy_helper.to_array(known[scaled["of"]]) * scales[:, None], name)
        )
    return model


def _views(
    model: onnx.ModelProto, before: onnx.ModelProto
) -> tuple[GraphEditor, dict[str, onnx.NodeProto], dict[str, list[str]]]:
    """Returns an editor of `model`, its nodes by name, and what they have read `before`."""
    editor = GraphEditor(model)
    constants = (tensor.name for tensor in before.graph.initializer)
    present = {*editor.producer, *constants, *(tensor.name for tensor in model.graph.input), ""}
    makers = {output: node for node in before.graph.node for output in node.output}

    def now(name: str) -> str:
        # NNCF takes out a Cast that casts to what is there.
        while name not in present:
            name = makers[name].input[0]
        return name

    nodes = {node.name: node for node in model.graph.node}
    old = {node.name: [now(name) for name in node.input] for node in before.graph.node if node.name in nodes}
    return editor, nodes, old


def _changed(
    editor: GraphEditor, product: onnx.NodeProto, old: dict[str, list[str]]
) -> Iterator[tuple[onnx.NodeProto, int]]:
    """Yields the nodes and places of inputs that are others than in the graph before, for `product`."""
    waiting = [product]
    while waiting:
        node = waiting.pop()
        for place, name in enumerate(node.input):
            if name != old[node.name][place]:
                yield node, place
                continue
            maker = editor.producer.get(name)
            if maker is not None and maker.op_type in _MOVES and maker.name in old:
                waiting.append(maker)


def _row_scales(old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.float32] | None:
    """Returns the factor of each row that makes `new` of the matrix `old`, or None where there is none."""
    if old.ndim != 2 or old.shape != new.shape or old.dtype != np.float32:
        return None
    rows = np.arange(len(old))
    largest = np.abs(old).argmax(axis=1)
    divisors = old[rows, largest]
    scales = np.where(divisors == 0, 1, new[rows, largest] / np.where(divisors == 0, 1, divisors)).astype(np.float32)
    # A product in FP32 has 24 bits, and so has the quotient.
    return scales if np.allclose(old * scales[:, None], new, rtol=2**-21, atol=0) else None


def _codes(source: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any], axis: int) -> NDArray[Any]:
    """Returns what QuantizeLinear gives (rounds to the nearest, ties to even, and saturates)."""
    shape = [1] * source.ndim
    if scale.ndim:
        shape[axis] = -1
    limits = np.iinfo(zero_point.dtype)
    # FP16 and BF16 are divided in FP32, as ONNX Runtime does.
    divided = source.astype(np.float32) / scale.astype(np.float32).reshape(shape)
    codes = np.round(divided) + zero_point.reshape(shape).astype(np.int32)
    return np.asarray(np.clip(codes, limits.min, limits.max), zero_point.dtype)
