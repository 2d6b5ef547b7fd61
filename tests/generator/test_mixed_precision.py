"""A graph typed FP16 or BF16 is strongly typed, keeps FP32 where it must, and answers nearly as FP32 does."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tiny_encoders import FAMILIES, HEADS, PACKED, make, mostly_slow, pairs, signature
from tritonpress_generator import export
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.infer import Array
from tritonpress_generator.mixed_precision import Precision, in_fp32, typed
from tritonpress_generator.onnx_graph import GraphEditor, normalized, residuals
from tritonpress_generator.signature import Signature

FP16_BOUND = 4e-3
"""Of answers about 1: a rounding is 2^-11, and the few of two layers add up."""


def exported(family: str, head: str = "span") -> tuple[onnx.ModelProto, Signature]:
    model = make(family, export.ATTENTION if family in PACKED else "own", head)
    gives = signature(model)
    return export.export(model, gives), gives


def asked(gives: Signature, lengths: list[int]) -> dict[str, Array]:
    return {name: tensor for name, tensor in pairs(lengths).items() if name in gives.inputs}


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    known = {tensor.name: tensor.data_type for tensor in graph.initializer}
    values = (*graph.value_info, *graph.input, *graph.output)
    return known | {value.name: value.type.tensor_type.elem_type for value in values}


@pytest.mark.parametrize("family", FAMILIES)
def test_fp16_answers_nearly_as_fp32(family: str) -> None:
    model, gives = exported(family)
    fp16 = typed(model, "fp16")
    onnx.checker.check_model(fp16, full_check=True)
    feed = asked(gives, [3, 17, 1, 30])
    expected, got = (session_infer(graph.SerializeToString())(feed) for graph in (model, fp16))
    for name, answer in expected.items():
        error = np.abs((got[name] - answer) * feed["attention_mask"]).max()
        # It was rounded, and not left in FP32.
        assert 0 < error <= FP16_BOUND


@pytest.mark.parametrize("head", HEADS)
def test_every_head_stays_in_fp32(head: str) -> None:
    model, gives = exported("bert", head)
    fp16 = typed(model, "fp16")
    of = types(fp16)
    names = [tensor.name for tensor in fp16.graph.output]
    assert names == list(gives.outputs)
    assert {of[name] for name in names} == {TensorProto.FLOAT}
    editor = GraphEditor(fp16)
    last = [node for node in fp16.graph.node if node.op_type == "LayerNormalization"][-1]
    for node in fp16.graph.node[list(fp16.graph.node).index(last) :]:
        floats = {of[name] for name in node.input if of.get(name) in {TensorProto.FLOAT, TensorProto.FLOAT16}}
        assert floats <= {TensorProto.FLOAT}
    assert editor.outputs == set(names)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("family", mostly_slow(FAMILIES))
def test_products_are_low_and_softmax_and_statistics_are_not(family: str, precision: Precision) -> None:
    low = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    model, _ = exported(family)
    graph = typed(model, precision)
    onnx.checker.check_model(graph, full_check=True)
    of = types(graph)
    kinds: dict[str, Counter[int]] = {}
    for node in graph.graph.node:
        kinds.setdefault(node.op_type, Counter())[of[node.output[0]]] += 1
    for op_type in {"Softmax", "LayerNormalization", "Pow", "ReduceMean", "Sqrt", "Cos", "Sin"} & set(kinds):
        assert set(kinds[op_type]) == {TensorProto.FLOAT}
    products = kinds["MatMul"]
    # The head's, and of rotary positions the angles, which are position times frequency.
    assert products[low] >= 12
    assert products[TensorProto.FLOAT] <= 2
    assert not [name for name, kind in of.items() if kind == TensorProto.FLOAT and name.endswith("MatMul_output_0")][2:]


def test_angles_of_rotary_positions_stay_in_fp32() -> None:
    model, _ = exported("modernbert")
    graph = typed(model, "fp16")
    of = types(graph)
    for node in graph.graph.node:
        if node.op_type in {"Cos", "Sin"}:
            assert of[node.input[0]] == TensorProto.FLOAT


@pytest.mark.parametrize("family", mostly_slow(FAMILIES))
def test_what_stands_for_bf16_on_a_cpu_rounds_as_it_does(family: str) -> None:
    model, gives = exported(family)
    low = typed(model, "bf16")
    plain = in_fp32(low)
    onnx.checker.check_model(plain, full_check=True)
    feed = asked(gives, [3, 17])
    expected, got = (session_infer(m.SerializeToString())(feed) for m in (model, plain))
    for name, answer in expected.items():
        error = float(np.abs(got[name] - answer).max() / np.abs(answer).max())
        # Eight bits of it.
        assert 2**-13 < error < 2**-4
    editor = GraphEditor(plain)
    of = types(low)
    rounded = {
        name
        for name, kind in of.items()
        if kind == TensorProto.BFLOAT16 and editor.constant(name) is None
    }  # fmt: skip
    assert rounded <= {node.output[0] for node in plain.graph.node if node.op_type == "Cast"}


def test_mask_stays_finite_in_fp16() -> None:
    model, gives = exported("bert")
    ask = session_infer(typed(model, "fp16").SerializeToString())
    feed = asked(gives, [1, 60])
    # What is padding everywhere has no weights to share out: no NaN even there.
    feed["attention_mask"][0] = 0
    assert all(np.isfinite(answer).all() for answer in ask(feed).values())
    largest = max(
        float(np.abs(onnx.numpy_helper.to_array(tensor)).max())
        for tensor in typed(model, "fp16").graph.initializer
        if tensor.data_type == TensorProto.FLOAT16
    )
    assert largest <= 32752


def test_fp32_is_plain_and_the_same() -> None:
    model, gives = exported("bert")
    graph = typed(model, "fp32")
    assert {node.domain for node in graph.graph.node} == {""}
    feed = asked(gives, [3, 17])
    expected, got = (session_infer(m.SerializeToString())(feed) for m in (model, graph))
    assert all(np.abs(got[name] - answer).max() <= 1e-6 for name, answer in expected.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_residuals_are_two_a_layer(family: str) -> None:
    model, _ = exported(family)
    assert len(residuals(GraphEditor(normalized(model)))) == 4
