"""LayerNormalization in plain operators answers as the operator does, and graphs that hold it stay well typed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import FAMILIES, PACKED, make, mostly_slow, pairs, signature
from tritonpress_generator import export
from tritonpress_generator.engines import tensorrt
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import qdq
from tritonpress_generator.infer import Array
from tritonpress_generator.layer_normalization import divided
from tritonpress_generator.mixed_precision import Precision, typed
from tritonpress_generator.plans import releases

TYPES: dict[int, Any] = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}
BOUND = {TensorProto.FLOAT: 1e-5, TensorProto.FLOAT16: 4e-3}
"""A few roundings, of 2^-24 and of 2^-11, of answers up to 4 and of what the mean is taken from."""


def one_node(
    shape: list[int], axis: int, kind: int = TensorProto.FLOAT, *, bias: bool = True, opset: int = 17, **more: Any
) -> onnx.ModelProto:
    """Returns a graph of the operator alone, with weights that are seeded."""
    generator = np.random.default_rng(0)
    of = shape[axis:]
    weights = {"scale": generator.normal(1, 0.1, of)} | ({"bias": generator.normal(0, 0.1, of)} if bias else {})
    outputs = more.pop("outputs", ["answer"])
    dims: list[int | str] = [f"d{number}" for number in range(len(shape))]
    reduced = [*dims[:axis], *[1] * len(of)]
    node = helper.make_node("LayerNormalization", ["x", *weights], outputs, name="norm", axis=axis, **more)
    graph = helper.make_graph(
        [node],
        "norm",
        [helper.make_tensor_value_info("x", kind, dims)],
        [helper.make_tensor_value_info(outputs[0], kind, dims)]
        + [helper.make_tensor_value_info(name, TensorProto.FLOAT, reduced) for name in outputs[1:]],
        [numpy_helper.from_array(value.astype(TYPES[kind]), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def as_written(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Returns a session that fuses nothing: ONNX Runtime 1.32's LayerNormFusion takes the Cast to FP32 before a plain
    normalisation for a part of it, and then refuses the operator that it has made for its two types."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def kinds(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@st.composite
def nodes(draw: st.DrawFn) -> tuple[onnx.ModelProto, int, Array]:
    """Draws a node, the first of its axes counted from the back, and what it is asked."""
    shape = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    kind = draw(st.sampled_from([*TYPES]))
    axis = -min(draw(st.integers(1, 3)), len(shape))
    model = one_node(
        shape,
        axis + len(shape) * draw(st.booleans()),
        kind,
        bias=draw(st.booleans()),
        opset=draw(st.sampled_from([17, 19])),
        epsilon=draw(st.sampled_from([1e-12, 1e-7, 1e-5, 1e-2])),
    )
    centre = draw(st.sampled_from([0.0, 3.0, -20.0]))
    x = np.random.default_rng(draw(st.integers(0, 99))).normal(centre, 2, shape)
    return model, axis, x.astype(TYPES[kind])


@settings(max_examples=60, deadline=None)
@given(nodes())
def test_answers_are_the_operators(drawn: tuple[onnx.ModelProto, int, Array]) -> None:
    model, axis, x = drawn
    plain = divided(model)
    onnx.checker.check_model(plain, full_check=True)
    assert "LayerNormalization" not in kinds(plain)
    expected, got = (session_infer(graph.SerializeToString())({"x": x})["answer"] for graph in (model, plain))
    assert got.dtype == expected.dtype
    # What is constant has no deviation, and the difference of two roundings is divided by the root of epsilon.
    spread = x.astype(np.float64).std(axis=tuple(range(axis, 0)), keepdims=True) > 1e-2
    error = np.abs(expected.astype(np.float64) - got.astype(np.float64))[np.broadcast_to(spread, x.shape)]
    bound = BOUND[model.graph.input[0].type.tensor_type.elem_type] * (1 + float(np.abs(x).max()))
    assert error.max(initial=0) <= bound


def test_statistics_of_fp16_are_taken_in_fp32() -> None:
    plain = divided(one_node([2, 3, 8], -1, TensorProto.FLOAT16))
    inferred = onnx.shape_inference.infer_shapes(plain, strict_mode=True).graph
    of = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    for node in plain.graph.node:
        if node.op_type in {"ReduceMean", "Pow", "Sqrt", "Sub", "Div"}:
            assert of[node.output[0]] == TensorProto.FLOAT
    # FP16 ends at 65,504: the square of 300 is beyond it.
    x = np.where(np.arange(8) % 2, 300, -300).astype(np.float16)[None, None].repeat(2, 0).repeat(3, 1)
    assert np.isfinite(session_infer(plain.SerializeToString())({"x": x})["answer"]).all()


def test_mean_and_deviation_are_given_where_they_are_asked_for() -> None:
    model = one_node([4, 6], -1, outputs=["answer", "mean", "inverse"])
    x = np.random.default_rng(0).normal(1, 2, (4, 6)).astype(np.float32)
    expected, got = (session_infer(graph.SerializeToString())({"x": x}) for graph in (model, divided(model)))
    assert all(np.allclose(got[name], expected[name], atol=1e-5) for name in ("answer", "mean", "inverse"))


def test_axis_from_the_front_of_a_tensor_of_unknown_rank_is_refused() -> None:
    model = one_node([2, 3, 8], 2)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(InputError, match=r"norm: axis must be counted from the back .*, got 2; export"):
        divided(model)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_typed_encoders_stay_well_typed(family: str, precision: Precision) -> None:
    model = make(family, export.ATTENTION, "span")
    gives = signature(model)
    graph = typed(export.export(model, gives), precision)
    plain = divided(graph)
    onnx.checker.check_model(plain, full_check=True)
    assert "LayerNormalization" not in kinds(plain)
    if precision == "bf16":
        return  # ONNX Runtime's CPU provider does not run it
    feed = {name: tensor for name, tensor in pairs([3, 17, 1]).items() if name in gives.inputs}
    expected, got = (
        dict(zip(gives.outputs, as_written(m).run(list(gives.outputs), feed), strict=True)) for m in (graph, plain)
    )
    present = feed["attention_mask"]
    bound = {"fp32": 1e-5, "fp16": 4e-3}[precision]
    assert max(float((np.abs(got[n] - answer) * present).max()) for n, answer in expected.items()) <= bound


OPERATORS_OF_8_5 = {
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape", "Cos", "CumSum", "DequantizeLinear",
    "Div", "Equal", "Erf", "Exp", "Expand", "Gather", "GatherElements", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Log", "MatMul", "Min", "Mul", "Neg", "Not", "OneHot", "Pow", "QuantizeLinear", "Range",
    "ReduceMean", "Reshape", "Shape", "Sigmoid", "Sign", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub",
    "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Of those that the exports hold, what 8.5's parser takes. Source: onnx-tensorrt's docs/operators.md of 8.4, and for
OneHot the names in `libnvonnxparser.so` of 8.5.3.1, which has no LayerNormalization."""


@pytest.mark.parametrize("family", mostly_slow(FAMILIES))
@pytest.mark.parametrize("release", ["23.03", "23.04"])
def test_a_release_is_given_operators_that_its_parser_knows(family: str, release: str) -> None:
    model = make(family, export.ATTENTION if family in PACKED else "own", "span")
    gives = signature(model)
    fp32 = export.export(model, gives)
    samples = [{n: t for n, t in pairs([length]).items() if n in gives.inputs} for length in (5, 9)]
    int8 = qdq.apply(fp32, qdq.Config(calibration="min_max"), samples)
    ladder = tensorrt.rungs(fp32, int8, tensorrt.Config(release=release))
    assert [*ladder] == ["fp32", "fp16", "int8"]
    known = OPERATORS_OF_8_5 | (set() if releases.lacks_layer_normalization(release) else {"LayerNormalization"})
    for graph in ladder.values():
        onnx.checker.check_model(graph, full_check=True)
        assert kinds(graph) <= known
        assert graph.ir_version <= 8
        assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 17)]
    # EuroBERT's normalisation is RMSNorm, which its export writes in plain operators.
    assert ("LayerNormalization" in kinds(ladder["fp32"])) == (release == "23.04" and family != "eurobert")
