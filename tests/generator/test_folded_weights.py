"""Weights as INT8 codes: the same answers to the bit, a quarter of the bytes, in the engines that take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import asked, make, pairs, signature
from tritonpress_generator import export
from tritonpress_generator.engines import openvino, tensorrt
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.graph import qdq
from tritonpress_generator.infer import Array
from tritonpress_generator.mixed_precision import Precision, typed
from tritonpress_generator.onnx_graph import GraphEditor
from tritonpress_generator.quantized_pairs import folded

MODEL = make("bert", export.ATTENTION, "span")
GIVES = signature(MODEL)
FP32 = export.export(MODEL, GIVES)
SAMPLES = [pairs([1 + i % 50], seed=i) for i in range(8)]
INT8 = qdq.apply(FP32, qdq.Config(calibration="min_max"), SAMPLES)
FEED = pairs([3, 17, 1, 30], seed=99)


def constant_pairs(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    editor = GraphEditor(graph)
    nodes = [node for node in graph.graph.node if node.op_type == "QuantizeLinear"]
    return [node for node in nodes if editor.constant(node.input[0]) is not None]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_answers_are_the_same_to_the_bit(precision: str) -> None:
    graph = typed(INT8, precision)  # type: ignore[arg-type]
    short = folded(graph)
    onnx.checker.check_model(short, full_check=True)
    assert constant_pairs(graph)
    assert not constant_pairs(short)
    expected, got = (session_infer(model.SerializeToString())(FEED) for model in (graph, short))
    assert all(np.array_equal(got[name], answer) for name, answer in expected.items())


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from([np.float32, np.float16]),
    axis=st.sampled_from([0, 1]),
    ties=st.booleans(),
)
def test_codes_are_those_of_onnx_runtime(seed: int, kind: type, axis: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(7, 5), scale=3)
    scales = np.full(weight.shape[axis], 0.25) if ties else generator.uniform(0.001, 0.2, weight.shape[axis])
    weight = np.round(weight * 8) / 8 if ties else weight
    constants = {"w": weight.astype(kind), "s": scales.astype(kind), "z": np.zeros(len(scales), np.int8)}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=axis),
            helper.make_node("Add", ["x", "x"], ["unused"]),
            helper.make_node("Identity", ["q"], ["y"]),
        ],
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.INT8, [7, 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    expected = session_infer(model.SerializeToString())({"x": np.ones(1, np.float32)})["y"]
    assert np.array_equal(np.asarray(GraphEditor(folded(model)).constant("q/codes")), expected)


def product_of(weight: Array, *, dead_activation: bool) -> onnx.ModelProto:
    """Returns an encoder's product of `x` and `weight`, in between such that `x` may be nothing but zeros."""
    factor = np.full(1, 0 if dead_activation else 1, np.float32)
    constants = {"w": weight, "factor": factor}
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["inner"], name="inner"),
        helper.make_node("MatMul", ["inner", "w"], ["product"], name="product"),
        helper.make_node("Identity", ["product"], ["y"], name="y"),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, weight.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    exponents=st.lists(st.integers(-40, 0), min_size=2, max_size=2),
    dead_activation=st.booleans(),
    precision=st.sampled_from(["fp32", "fp16", "bf16"]),
)
def test_scales_of_dead_and_of_small_columns_stay_above_zero(
    seed: int, exponents: list[int], dead_activation: bool, precision: Precision
) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.uniform(-1, 1, (64, 128)).astype(np.float32)
    weight[:, 0] = 0
    weight[:, 1:3] *= np.exp2(exponents)
    rows = generator.uniform(-1, 1, (16, 64)).astype(np.float32)
    model = product_of(weight, dead_activation=dead_activation)
    graph = folded(typed(qdq.apply(model, qdq.Config(calibration="min_max", smooth=False), [{"x": rows}]), precision))
    editor = GraphEditor(graph)
    pairs_of = [node for node in graph.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    scales = [np.asarray(editor.constant(node.input[1]), np.float32) for node in pairs_of]
    assert len(scales) == 3
    assert all((scale > 0).all() for scale in scales)
    (codes,) = (node for node in pairs_of if editor.constant(node.input[0]) is not None)
    held = np.asarray(editor.constant(codes.input[0]), np.float32) * np.asarray(
        editor.constant(codes.input[1]), np.float32
    )
    largest = np.abs(weight).max(axis=0)
    # Half a code, and what the scale's type rounds of the largest; of small columns half of FP16's smallest step.
    share, step = {"fp32": (0.51, 0), "fp16": (0.57, 2**-25), "bf16": (1.01, 0)}[precision]
    assert (np.abs(held - weight) <= share / 127 * largest + step).all()
    if precision == "bf16":
        # ONNX Runtime has no such product on a CPU.
        return
    options = onnxruntime.SessionOptions()
    # Products of bytes saturate on a processor without VNNI.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(["y"], {"x": rows})
    if dead_activation:
        assert not answer.any()
        return
    assert not answer[:, 0].any()
    expected = rows @ weight
    assert (np.abs(answer - expected) <= 64 * (0.01 * largest + 2 * step)).all()


def test_weights_take_a_quarter_of_the_bytes() -> None:
    editor = GraphEditor(folded(INT8))
    sizes = [tensor.nbytes for name in editor.constants if (tensor := editor.constant(name)) is not None]
    codes = [name for name, tensor in editor.constants.items() if tensor.data_type == TensorProto.INT8 and tensor.dims]
    weights = {node.input[0] for node in constant_pairs(INT8)}
    before = sum(np.asarray(GraphEditor(INT8).constant(name)).nbytes for name in weights)
    after = sum(
        np.asarray(editor.constant(name)).nbytes for name in codes if np.asarray(editor.constant(name)).ndim == 2
    )
    assert 4 * after == before
    assert sum(sizes) < INT8.ByteSize() - before + after


def test_fp8_stays_a_pair() -> None:
    graph = qdq.apply(FP32, qdq.Config(precision="fp8", calibration="min_max"), SAMPLES)
    assert len(constant_pairs(folded(graph))) == len(constant_pairs(graph)) > 0


@pytest.mark.parametrize(("release", "pairs_left"), [("24.10", 0), ("24.05", 0), ("24.04", 12), ("23.03", 12)])
def test_tensorrt_has_codes_where_the_graph_says_types(release: str, pairs_left: int) -> None:
    rungs = tensorrt.rungs(FP32, INT8, tensorrt.Config(release=release))
    assert len(constant_pairs(rungs["int8"])) == pairs_left
    assert "INT8" in {TensorProto.DataType.Name(t.data_type) for t in rungs["int8"].graph.initializer}


def test_openvino_saves_codes(tmp_path: Path) -> None:
    config = openvino.Config()
    sizes = {}
    for name, graphs in (("pairs", {"openvino": INT8}), ("codes", openvino.rungs(FP32, INT8, config))):
        openvino.build(graphs, tmp_path / name, config, asked(GIVES))
        sizes[name] = (tmp_path / name / "model.bin").stat().st_size
    assert sizes["codes"] <= sizes["pairs"]
    assert not constant_pairs(openvino.rungs(FP32, INT8, config)["openvino"])
