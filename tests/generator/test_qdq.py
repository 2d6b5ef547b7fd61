"""Q/DQ pairs: symmetric, where TensorRT fuses them, and close to FP32 when ONNX Runtime runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import make, pairs, signature
from tritonpress_generator import export
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import GraphMaterial, qdq
from tritonpress_generator.infer import Array
from tritonpress_generator.kept import Kept
from tritonpress_generator.mixed_precision import typed
from tritonpress_generator.onnx_graph import GraphEditor, residuals

MODEL = make("bert", export.ATTENTION, "span")
GIVES = signature(MODEL)
FP32 = export.export(MODEL, GIVES)
SAMPLES = [pairs([1 + i % 50], seed=i) for i in range(24)]
FEED = pairs([3, 17, 1, 30], seed=99)
ALL = [("int8", "min_max"), ("int8", "entropy"), ("int8", "percentile"), ("fp8", "min_max"), ("fp8", "percentile")]
BOUND = 0.1
"""Of scores up to 1.7."""


def quantized(**config: object) -> onnx.ModelProto:
    return qdq.apply(FP32, qdq.Config(**{"calibration": "min_max", **config}), SAMPLES)  # type: ignore[arg-type]


def worst(graph: onnx.ModelProto) -> float:
    expected, got = (session_infer(model.SerializeToString())(FEED) for model in (FP32, graph))
    return max(float(np.abs((got[n] - answer) * FEED["attention_mask"]).max()) for n, answer in expected.items())


@pytest.mark.parametrize(("precision", "calibration"), ALL)
def test_answers_stay_near_fp32(precision: str, calibration: str) -> None:
    graph = quantized(precision=precision, calibration=calibration)
    onnx.checker.check_model(graph, full_check=True)
    assert 1e-4 < worst(graph) <= BOUND


@pytest.mark.parametrize(("precision", "zero_points"), [("int8", TensorProto.INT8), ("fp8", TensorProto.FLOAT8E4M3FN)])
def test_pairs_are_symmetric_and_weights_have_a_scale_a_column(precision: str, zero_points: int) -> None:
    graph = quantized(precision=precision)
    editor = GraphEditor(graph)
    pairs_of = [node for node in graph.graph.node if node.op_type == "QuantizeLinear"]
    assert pairs_of
    for node in pairs_of:
        source, scale, zero = node.input
        tensor = editor.constants[zero]
        assert tensor.data_type == zero_points
        assert not np.any(np.asarray(numpy_helper.to_array(tensor), np.float32))
        assert editor.only_consumer(node.output[0], "DequantizeLinear") is not None
        weight, scales = editor.constant(source), np.asarray(editor.constant(scale))
        if weight is None:
            assert scales.shape == ()
        else:
            assert weight.ndim == 2  # no bias
            assert scales.shape == (weight.shape[1],)
            largest = {"int8": 127, "fp8": 448}[precision]
            assert np.allclose(scales, np.abs(weight).max(axis=0) / largest)


def behind_pairs(editor: GraphEditor, node: onnx.NodeProto) -> list[bool]:
    made = [editor.producer.get(name) for name in node.input]
    return [maker is not None and maker.op_type == "DequantizeLinear" for maker in made]


def test_both_inputs_of_all_products_are_quantised_and_of_residuals_the_one_past_the_block() -> None:
    graph = quantized(smooth=False)
    editor = GraphEditor(graph)
    *products, head = [node for node in graph.graph.node if node.op_type == "MatMul"]
    assert len(products) == 16
    assert all(behind_pairs(editor, node) == [True, True] for node in products)
    assert behind_pairs(editor, head) == [False, False]
    adds = [node for node in graph.graph.node if node.op_type == "Add" and any(behind_pairs(editor, node))]
    assert len(adds) == 4
    for node in adds:
        assert editor.only_consumer(node.output[0], "LayerNormalization") is not None
        (block,) = [name for name, pair in zip(node.input, behind_pairs(editor, node), strict=True) if not pair]
        bias = editor.producer[block]
        assert bias.op_type == "Add"
        assert any(editor.producer[name].op_type == "MatMul" for name in bias.input if name in editor.producer)


@pytest.mark.parametrize(("setting", "products", "adds"), [("attention", 12, 4), ("residual", 16, 0)])
def test_attention_and_residuals_can_stay_as_they_are(setting: str, products: int, adds: int) -> None:
    graph = quantized(smooth=False, **{setting: False})
    editor = GraphEditor(graph)
    reads = {
        kind: [node for node in graph.graph.node if node.op_type == kind and any(behind_pairs(editor, node))]
        for kind in ("MatMul", "Add")
    }
    assert [len(nodes) for nodes in reads.values()] == [products, adds]
    assert 1e-4 < worst(graph) <= BOUND


@pytest.mark.parametrize("calibration", ["min_max", "entropy", "percentile"])
def test_probabilities_are_never_clipped(calibration: str) -> None:
    graph = quantized(calibration=calibration, percentile=90.0)
    editor = GraphEditor(graph)
    softmaxes = [node.output[0] for node in graph.graph.node if node.op_type == "Softmax"]
    pairs_of = [editor.only_consumer(name, "QuantizeLinear") for name in softmaxes]
    scales = [float(np.asarray(editor.constant(node.input[1]))) for node in pairs_of if node is not None]
    assert scales == [pytest.approx(1 / 127)] * 2


def test_attention_between_reshapes_is_quantised_too() -> None:
    """DeBERTa's products are of three dimensions, its Softmax of four."""
    model = make("deberta-v2", "own", "span")
    gives = signature(model)
    fp32 = export.export(model, gives)
    samples = [{name: sample[name] for name in gives.inputs} for sample in SAMPLES]
    graph = qdq.apply(fp32, qdq.Config(calibration="percentile", smooth=False), samples)
    editor = GraphEditor(graph)
    products = [node for node in graph.graph.node if node.op_type == "MatMul"]
    assert sum(behind_pairs(editor, node) == [True, True] for node in products) == 16
    softmaxes = [node.output[0] for node in graph.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 2
    for name in softmaxes:
        (reshape,) = [node for node in editor.consumers[name] if node.op_type == "Reshape"]
        pair = editor.only_consumer(reshape.output[0], "QuantizeLinear")
        assert pair is not None
        assert float(np.asarray(editor.constant(pair.input[1]))) == pytest.approx(1 / 127)
    sample = {name: FEED[name] for name in gives.inputs}
    expected, got = (session_infer(model.SerializeToString())(sample) for model in (fp32, graph))
    for name, answer in expected.items():
        assert 1e-4 < np.abs((got[name] - answer) * sample["attention_mask"]).max() <= BOUND


def test_products_of_one_activation_share_its_pair() -> None:
    graph = quantized()
    query, key, value = (
        next(node for node in graph.graph.node if node.name.endswith(f"layer.0/attention/self/{name}/MatMul"))
        for name in ("query", "key", "value")
    )
    assert query.input[0] == key.input[0] == value.input[0]


def test_excluded_products_stay_as_they_are() -> None:
    graph = quantized(exclude=["*layer.1/*", "*__2"])
    editor = GraphEditor(graph)
    products = [node for node in graph.graph.node if node.op_type == "MatMul"]
    plain = [node.name for node in products if editor.producer.get(node.input[0], node).op_type != "DequantizeLinear"]
    assert len(plain) == 9


def outlier_product(generator: np.random.Generator) -> tuple[onnx.ModelProto, list[dict[str, Array]], Array]:
    weight = generator.normal(size=(32, 32)).astype(np.float32)
    rows = generator.normal(size=(64, 32)).astype(np.float32)
    rows[:, 3] *= 60
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [value("x", TensorProto.FLOAT, ["rows", 32])],
        [value("y", TensorProto.FLOAT, ["rows", 32])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), [{"x": rows}], weight


def test_smoothing_lowers_the_error_of_an_outlier_channel() -> None:
    model, samples, weight = outlier_product(np.random.default_rng(0))
    node = helper.make_node("Identity", ["x"], ["inner"], name="inner")
    model.graph.node.insert(0, node)
    model.graph.node[1].input[0] = "inner"
    errors = {}
    for smooth in (True, False):
        graph = qdq.apply(model, qdq.Config(calibration="min_max", smooth=smooth), samples)
        answer = session_infer(graph.SerializeToString())(samples[0])["y"]
        errors[smooth] = float(np.square(answer - samples[0]["x"] @ weight).mean())
    assert errors[True] < 0.5 * errors[False]


def as_written(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Returns a session without INT8 kernels, whose products of 8 bits saturate on processors without VNNI."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


@example(seed=16, factor=1.0)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.floats(0.01, 100))
def test_error_is_within_half_a_scale_of_each_input(seed: int, factor: float) -> None:
    generator = np.random.default_rng(seed)
    model, samples, weight = outlier_product(generator)
    model.graph.node.insert(0, helper.make_node("Identity", ["x"], ["inner"], name="inner"))
    model.graph.node[1].input[0] = "inner"
    rows = samples[0]["x"] * np.float32(factor)
    graph = qdq.apply(model, qdq.Config(calibration="min_max", smooth=False), [{"x": rows}])
    (answer,) = as_written(graph).run(["y"], {"x": rows})
    of_rows, of_weight = np.abs(rows).max() / 254, np.abs(weight).max(axis=0) / 254
    bound = np.abs(rows).sum(1)[:, None] * of_weight + np.abs(weight).sum(0) * of_rows + 32 * of_rows * of_weight
    assert (np.abs(answer - rows @ weight) <= bound * 1.001 + 1e-5).all()


def test_calibrations_choose_different_ranges() -> None:
    scales = []
    for calibration in ("min_max", "entropy", "percentile"):
        graph = quantized(calibration=calibration, percentile=99.0, smooth=False)
        editor = GraphEditor(graph)
        nodes = [node for node in graph.graph.node if node.op_type == "QuantizeLinear"]
        of = [editor.constant(node.input[1]) for node in nodes if editor.constant(node.input[0]) is None]
        scales.append(np.array(of))
    assert (scales[2] <= scales[0] * 1.001).all()
    assert (scales[2] < 0.9 * scales[0]).any()
    assert not np.allclose(scales[0], scales[1])


def test_ranges_are_kept_and_reused_where_nothing_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = qdq.Config(calibration="percentile")
    kept = Kept(tmp_path)
    first = qdq.apply(FP32, config, SAMPLES, GraphMaterial(kept))
    kept.save()
    (file,) = tmp_path.glob("*.json")
    # Were it calibrated again, this would be found in it.
    file.write_text(file.read_text().replace('"scales": {', '"marked": 1, "scales": {'))
    again = Kept(tmp_path)
    assert qdq.apply(FP32, config, SAMPLES, GraphMaterial(again)).SerializeToString() == first.SerializeToString()
    again.save()
    assert '"marked"' in file.read_text()
    other = Kept(tmp_path)
    qdq.apply(FP32, config, [*SAMPLES[:-1], pairs([7], seed=1234)], GraphMaterial(other))
    other.save()
    assert [path.name for path in tmp_path.glob("*.json")] != [file.name]
    assert all('"marked"' not in path.read_text() for path in tmp_path.glob("*.json"))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_typed_fp16_it_is_strongly_typed_and_as_near(precision: str) -> None:
    graph = quantized(precision=precision)
    low = typed(graph, "fp16")
    onnx.checker.check_model(low, full_check=True)
    assert worst(low) <= BOUND
    editor = GraphEditor(low)
    adds = residuals(editor)
    assert len(adds) == 4
    # Behind the last of them it is FP32.
    (last,) = editor.consumers[adds[-1].output[0]]
    assert last.op_type == "Cast"
    head = [node for node in low.graph.node if node.op_type == "MatMul"][-1]
    assert editor.constants[head.input[1]].data_type == TensorProto.FLOAT
    products = [node for node in low.graph.node if node.op_type == "MatMul"]
    weights = [editor.producer.get(node.input[1]) for node in products]
    scales = [editor.constants[maker.input[1]].data_type for maker in weights if maker is not None]
    assert scales.count(TensorProto.FLOAT16) >= 16


@pytest.mark.parametrize(
    ("config", "samples", "message"),
    [
        ({}, [], "needs at least 1 text, got 0"),
        ({"exclude": ["*"]}, SAMPLES, r"exclude: must leave a product or residual to quantise, all 20 match; "),
        ({"exclude": ["*layer.9*"]}, SAMPLES, r"'\*layer.9\*' matches none of 20"),
    ],
)
def test_what_cannot_be_quantised_is_refused(
    config: dict[str, object], samples: list[dict[str, Array]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        qdq.apply(FP32, qdq.Config(**config), samples)  # type: ignore[arg-type]
