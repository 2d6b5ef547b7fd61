"""NNCF's INT8: near FP32, run as INT8 by OpenVINO, and chosen once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from nncf_graphs import BOUND, FEED, FP32, GIVES, in_fp32, quantized, trained_like, worst
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import FAMILIES, PACKED, Reader, asked, feed, make, mostly_slow, pairs, signature
from tritonpress_generator import export, signal_stack
from tritonpress_generator.engines import openvino as engine
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.graph import GraphMaterial, nncf
from tritonpress_generator.kept import Kept
from tritonpress_generator.onnx_graph import (
    IR_VERSION,
    OPSET,
    GraphEditor,
    behind,
    normalized,
    residuals,
    with_own_vectors,
)
from tritonpress_generator.quantized_pairs import described, folded, reading_pairs, rebuilt, undone


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    pytest.importorskip("nncf", reason="needs the extra openvino")


@pytest.fixture(scope="module")
def int8() -> onnx.ModelProto:
    return quantized()


def test_answers_are_near_fp32(int8: onnx.ModelProto) -> None:
    onnx.checker.check_model(int8, full_check=True)
    assert 1e-5 < worst(int8) <= BOUND
    assert int8.ir_version == IR_VERSION
    assert [(opset.domain, opset.version) for opset in int8.opset_import] == [("", OPSET)]


def test_weights_are_codes_with_a_scale_a_column_and_head_and_embeddings_stay(int8: onnx.ModelProto) -> None:
    editor = GraphEditor(int8)
    weights = {}
    for node in int8.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in editor.constants:
            (reader,) = editor.consumers[node.output[0]]
            weights[reader.name] = editor.constants[node.input[0]].data_type, editor.constant(node.input[1])
    assert len(weights) == 12
    for name, (data_type, scales) in weights.items():
        assert data_type == TensorProto.INT8
        assert scales is not None
        assert scales.ndim == 1, name
    plain = normalized(FP32)
    before = {tensor.name: tensor for tensor in plain.graph.initializer}
    for node in plain.graph.node:
        if node.op_type == "Gather" or "span" in node.name:
            (now,) = [other for other in int8.graph.node if other.name == node.name]
            assert now.input == node.input
            for name in set(now.input) & set(before):
                assert editor.constants[name].raw_data == before[name].raw_data


@pytest.mark.parametrize(
    "head", ["mean", "all", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cls", "classifier"))]
)
def test_what_is_behind_the_encoder_stays(head: str) -> None:
    model = make("bert", export.ATTENTION, head)
    graph = export.export(model, signature(model))
    of = pairs if signature(model).segments else feed
    int8 = nncf.apply(graph, nncf.Config(), [of([1 + i % 50], seed=i) for i in range(8)])
    editor = GraphEditor(with_own_vectors(normalized(graph)))
    now = {node.name: node for node in int8.graph.node}
    after = behind(editor, residuals(editor)[-1].output)
    # NNCF takes out what casts to what is there.
    nodes = [node for node in editor.model.graph.node if node.output[0] in after and node.op_type != "Cast"]
    assert len(nodes) >= 2
    assert all(now[node.name].input == node.input for node in nodes)


def test_openvino_runs_products_in_int8(int8: onnx.ModelProto, tmp_path: Path) -> None:
    """OpenVINO says of every node that it executes in which types it does."""
    openvino = pytest.importorskip("openvino")
    engine.build(engine.rungs(FP32, int8, engine.Config()), tmp_path / "1", engine.Config(), asked(GIVES))
    with signal_stack.kept():
        compiled = openvino.Core().compile_model(str(tmp_path / "1" / "model.xml"), "CPU")
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kinds = [node["layerType"].astype(str) for node in nodes]
    products = [node for node, kind in zip(nodes, kinds, strict=True) if kind in {"FullyConnected", "MatMul"}]
    precisions = [node["runtimePrecision"].astype(str) for node in products]
    assert sum(precision in {"i8", "u8"} for precision in precisions) >= 12
    got = engine.load(tmp_path / "1", engine.Config(), threads=1)(FEED)
    expected = session_infer(FP32.SerializeToString())(FEED)
    for name, answer in expected.items():
        exact, near = (np.ravel(tensor * FEED["attention_mask"]) for tensor in (answer, got[name]))
        assert exact @ near / np.linalg.norm(exact) / np.linalg.norm(near) >= 0.999


def test_scores_that_are_reshaped_are_quantised_too() -> None:
    """DeBERTa's, with a normalisation of what positions are embedded in, as its checkpoints have it."""
    torch.manual_seed(0)
    config_class, values = FAMILIES["deberta-v2"]
    encoder = hf.AutoModel.from_config(config_class(**values, norm_rel_ebd="layer_norm", position_buckets=8))
    model = Reader(encoder.eval()).eval()
    gives = signature(model)
    fp32 = export.export(model, gives)
    graph = nncf.apply(fp32, nncf.Config(), [feed([1 + i % 50], seed=i) for i in range(8)])
    scores = [f"/model/encoder/encoder/layer.{layer}/attention/self/MatMul" for layer in (0, 1)]
    assert {*scores} <= {node.name for node in graph.graph.node}
    assert not {*scores} & {*in_fp32(graph)}
    assert worst(graph, fp32, feed([3, 17, 1, 30], seed=99)) <= BOUND


def test_done_again_it_is_the_same(int8: onnx.ModelProto) -> None:
    assert quantized().SerializeToString() == int8.SerializeToString()


def test_what_was_chosen_is_kept_and_reused_where_nothing_changed(tmp_path: Path, int8: onnx.ModelProto) -> None:
    kept = Kept(tmp_path)
    first = quantized(GraphMaterial(kept))
    assert first.SerializeToString() == int8.SerializeToString()
    kept.save()
    (file,) = tmp_path.glob("*.json")
    # Were it calibrated again, this would be gone.
    file.write_text(file.read_text().replace('"rows": {', '"marked": 1, "rows": {'))
    again = Kept(tmp_path)
    assert quantized(GraphMaterial(again)).SerializeToString() == first.SerializeToString()
    again.save()
    assert '"marked"' in file.read_text()
    other = Kept(tmp_path)
    quantized(GraphMaterial(other), preset="performance")
    other.save()
    assert [path.name for path in tmp_path.glob("*.json")] != [file.name]


def zero_points(graph: onnx.ModelProto) -> set[int]:
    editor = GraphEditor(graph)
    made = [node for node in graph.graph.node if node.op_type == "QuantizeLinear"]
    return {int(np.ravel(editor.constant(node.input[2]))[0]) for node in made}  # type: ignore[arg-type]


def test_preset_chooses_the_zero_points(int8: onnx.ModelProto) -> None:
    assert len(zero_points(int8)) > 1
    symmetric = quantized(preset="performance")
    assert zero_points(symmetric) == {0}
    assert worst(symmetric) <= BOUND


@pytest.mark.parametrize(("alpha", "smoothed"), [(None, False), (0.5, True)])
def test_smoothing_is_chosen(alpha: float | None, smoothed: bool) -> None:
    graph = quantized(smooth_quant_alpha=alpha)
    assert any("smooth" in node.name and node.op_type == "Mul" for node in graph.graph.node) == smoothed
    assert worst(graph) <= 3 * BOUND


def test_biases_are_corrected_or_not(int8: onnx.ModelProto) -> None:
    def changed(graph: onnx.ModelProto) -> int:
        return sum(tensor.name.endswith("bias/changed") for tensor in graph.graph.initializer)

    assert changed(int8) >= 6
    assert changed(quantized(bias_correction=False)) == 0


def test_embeddings_are_quantised_where_that_is_asked(int8: onnx.ModelProto) -> None:
    def tables(graph: onnx.ModelProto) -> set[int]:
        editor = GraphEditor(graph)
        of_gathers = [editor.producer.get(node.input[0]) for node in graph.graph.node if node.op_type == "Gather"]
        backs = [node for node in of_gathers if node is not None and node.op_type == "DequantizeLinear"]
        return {editor.constants[node.input[0]].data_type for node in backs if node.input[0] in editor.constants}

    assert tables(int8) == set()
    graph = quantized(embeddings=True)
    assert tables(graph) == {TensorProto.INT8}
    assert worst(graph) <= 10 * BOUND
    assert graph.ByteSize() < int8.ByteSize()


def test_excluded_products_are_what_they_were(int8: onnx.ModelProto) -> None:
    graph = quantized(exclude=["*layer.1/*"])
    assert [name for name in in_fp32(int8) if "self/MatMul" not in name] == []
    of_layer = [name for name in in_fp32(graph) if "layer.1" in name]
    assert len(of_layer) == 6
    before = {node.name: node for node in with_own_vectors(normalized(FP32)).graph.node}
    assert all(node.input == before[node.name].input for node in graph.graph.node if node.name in of_layer)


@pytest.mark.parametrize("family", mostly_slow(PACKED))
def test_undone_everywhere_it_is_fp32_of_every_family(family: str) -> None:
    model = trained_like(family)
    gives = signature(model)
    of = pairs if gives.segments else feed
    fp32 = with_own_vectors(normalized(export.export(model, gives)))
    config = nncf.Config()
    names = nncf._quantised(GraphEditor(fp32), config)
    samples = [of([1 + i % 50], seed=i) for i in range(8)]
    raw = nncf._calibrated(nncf._nncf(), fp32, names, config, samples)
    graph = rebuilt(described(raw, fp32), fp32)
    sample = of([3, 17, 1, 30], seed=99)
    # As described it is what NNCF has made, up to the rounding of weights.
    assert worst(graph, raw, sample) <= 1e-2
    assert worst(graph, fp32, sample) > 1e-5
    products = reading_pairs(graph, fp32, names)
    assert len(products) >= 8
    all_products = [node.name for node in fp32.graph.node if node.op_type == "MatMul"]
    plain = undone(graph, fp32, all_products)
    assert not [node for node in plain.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert worst(plain, fp32, sample) == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(1e-3, 1e3), axis=st.sampled_from([-1, 0, 1, None]))
def test_codes_of_constants_are_what_onnx_runtime_makes_of_them(seed: int, factor: float, axis: int | None) -> None:
    generator = np.random.default_rng(seed)
    weight = (generator.normal(size=(9, 9)) * factor).astype(np.float32)
    # Codes end at those of 1.5 deviations: some values saturate.
    scale = (generator.uniform(0.5, 1.5, 9 if axis is not None else ()) * factor / 100).astype(np.float32)
    zero_point = generator.integers(-9, 9, scale.shape).astype(np.int8)
    where = {} if axis is None else {"axis": axis}
    inputs = {"weight": weight, "scale": scale, "zero_point": zero_point}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", [*inputs], ["codes"], name="quantize", **where),
            helper.make_node("DequantizeLinear", ["codes", "scale", "zero_point"], ["values"], name="back", **where),
            helper.make_node("Add", ["x", "values"], ["y"], name="add"),
        ],
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [9, 9])],
        [numpy_helper.from_array(value, name) for name, value in inputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    short = folded(model)
    assert [node.op_type for node in short.graph.node] == ["DequantizeLinear", "Add"]
    sample = {"x": np.zeros((9, 9), np.float32)}
    expected, got = (session_infer(graph.SerializeToString())(sample)["y"] for graph in (model, short))
    assert np.array_equal(expected, got)
