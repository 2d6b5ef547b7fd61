"""Graphs come out of their travelling form as they went in, and are the project's own exports."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers as hf
from onnx import TensorProto, helper, numpy_helper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tritonpress_generator.engines.onnxruntime import session_infer
from visit import parity, prepare
from visit.shapes import SHAPES, Shape
from visit.torch_worker import Encoder
from visit.travelling import FEWEST_ELEMENTS, Weights, WeightsError, rounded

TINY = SHAPES["tiny"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("visit")
    prepare.shape("tiny", folder)
    return folder


def product(value: np.ndarray) -> onnx.ModelProto:
    """Returns a graph of one product with the weights `value`."""
    rows, columns = value.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
        [numpy_helper.from_array(value, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def halves(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (64, 128)).astype(np.float16).astype(np.float32)


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    model, value = product(halves()), halves()
    Weights(tmp_path).take_out(model)
    assert len(model.SerializeToString()) < 500
    (path,) = (tmp_path / "weights").iterdir()
    assert path.stat().st_size < value.nbytes / 2 + 200
    Weights(tmp_path).put_back(model)
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), value)


def test_random_weights_travel_as_seeds(tmp_path: Path) -> None:
    model = product(halves())
    Weights(tmp_path).randomise(model, 7)
    value = numpy_helper.to_array(model.graph.initializer[0]).copy()
    assert 0.015 < value.std() < 0.025
    Weights(tmp_path).take_out(model)
    assert not list((tmp_path / "weights").iterdir())
    Weights(tmp_path).put_back(model)
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), value)


def test_what_fp16_cannot_hold_does_not_travel_unsaid(tmp_path: Path) -> None:
    model = product(halves() + np.float32(1e-5))
    with pytest.raises(WeightsError, match="w: must be numbers of FP16 to travel; round the model first"):
        Weights(tmp_path).take_out(model)
    half = rounded(model)
    Weights(tmp_path).take_out(half)
    assert np.abs(numpy_helper.to_array(rounded(model).graph.initializer[0]) - halves()).max() < 4e-3


def test_other_weights_than_were_taken_out_are_refused(tmp_path: Path) -> None:
    model = product(halves())
    Weights(tmp_path).take_out(model)
    (path,) = (tmp_path / "weights").iterdir()
    np.save(path, halves(seed=1).astype(np.float16))
    with pytest.raises(WeightsError, match=r"w: must have the hash .*, has .*; pack again"):
        Weights(tmp_path).put_back(model)
    path.unlink()
    with pytest.raises(WeightsError, match="is missing; pack the visit again"):
        Weights(tmp_path).put_back(model)


@pytest.mark.parametrize("rung", prepare.RUNGS)
def test_filled_graph_answers_what_was_recorded(packed: Path, rung: str) -> None:
    model = onnx.load(packed / "shapes" / "tiny" / f"model.{rung}.onnx")
    assert any(tensor.doc_string and not tensor.raw_data for tensor in model.graph.initializer)
    Weights(packed).put_back(model)
    onnx.checker.check_model(model, full_check=True)
    found = parity.differences(
        session_infer(model.SerializeToString()), parity.answers(packed / "shapes" / "tiny" / "answers.npz", rung)
    )
    assert found["cosine"] > 1 - 1e-6
    assert found["relative_error"] < 1e-5
    parity.check(rung, found)


def test_graphs_are_for_the_kits_tensorrt(packed: Path) -> None:
    for rung in prepare.RUNGS:
        model = onnx.load(packed / "shapes" / "tiny" / f"model.{rung}.onnx")
        kinds = Counter(node.op_type for node in model.graph.node)
        assert kinds["LayerNormalization"] == 0
        assert kinds["Softmax"] == TINY.layers
        assert (kinds["QuantizeLinear"] > 0) == (rung == "int8")
        assert {tensor.type.tensor_type.elem_type for tensor in model.graph.input} == {TensorProto.INT32}


def test_random_encoder_is_a_bert(packed: Path) -> None:
    """The export answers as transformers' own BERT with the same weights, and so does the peer in torch."""
    model, gives = prepare.random_encoder(TINY)
    config = hf.BertConfig(
        vocab_size=TINY.vocabulary, hidden_size=TINY.hidden, num_hidden_layers=TINY.layers,
        num_attention_heads=TINY.heads, intermediate_size=TINY.intermediate, max_position_embeddings=TINY.positions,
    )  # fmt: skip
    torch.manual_seed(0)
    bert = hf.BertForQuestionAnswering(config).eval()
    feed = prepare.asked(TINY, 1, 24, seed=3)
    with torch.inference_mode():
        expected = bert(**{name: torch.from_numpy(tensor) for name, tensor in feed.items()})
        ids, segments = (torch.from_numpy(feed[name]) for name in ("input_ids", "token_type_ids"))
        peer = dict(zip(gives.outputs, as_peer(bert)(ids, segments), strict=True))
    got = session_infer(model.SerializeToString())(feed)
    for name, logits in (("start", expected.start_logits), ("end", expected.end_logits)):
        assert np.abs(got[name] - logits.numpy()).max() < 1e-5
        assert np.abs(peer[name].numpy() - logits.numpy()).max() < 1e-5


def as_peer(bert: hf.BertForQuestionAnswering) -> Encoder:
    """Returns the peer with the weights of transformers' model."""
    encoder = Encoder(TINY).eval()
    source, state = bert.state_dict(), {}
    plain = {
        "words": "embeddings.word_embeddings", "positions": "embeddings.position_embeddings",
        "segments": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm",
    }  # fmt: skip
    names = {f"{key}": f"bert.{value}" for key, value in plain.items()} | {"span": "qa_outputs"}
    for layer in range(TINY.layers):
        prefix = f"bert.encoder.layer.{layer}"
        names |= {
            f"layers.{layer}.attention_out": f"{prefix}.attention.output.dense",
            f"layers.{layer}.attention_norm": f"{prefix}.attention.output.LayerNorm",
            f"layers.{layer}.up": f"{prefix}.intermediate.dense",
            f"layers.{layer}.down": f"{prefix}.output.dense",
            f"layers.{layer}.norm": f"{prefix}.output.LayerNorm",
        }
        for part in ("weight", "bias"):
            parts = [source[f"{prefix}.attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            state[f"layers.{layer}.attention_in.{part}"] = torch.cat(parts)
    for key in encoder.state_dict().keys() - state.keys():
        module, _, part = key.rpartition(".")
        state[key] = source[f"{names[module]}.{part}"]
    encoder.load_state_dict(state)
    return encoder


def test_operations_are_those_that_torch_counts() -> None:
    ids = torch.zeros((2, 48), dtype=torch.int64)
    # Of the kernels, torch counts those of plain attention alone.
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.inference_mode(), plain, FlopCounterMode(display=False) as counter:
        Encoder(TINY).eval()(ids, ids)
    head = 2 * 2 * 48 * TINY.hidden * 2
    assert counter.get_total_flops() == 2 * TINY.operations(48) + head


def test_published_sizes() -> None:
    def parameters(shape: Shape) -> int:
        layer = 4 * shape.hidden**2 + 2 * shape.hidden * shape.intermediate + 9 * shape.hidden + shape.intermediate
        return shape.layers * layer + (shape.vocabulary + shape.positions + 2 + 2) * shape.hidden

    # Devlin et al. 2019: 110M and 340M (with the pooler); MiniLM-L6 22.7M.
    assert [round(parameters(SHAPES[name]) / 1e6) for name in ("minilm", "base", "large")] == [23, 109, 334]
    assert all(shape.hidden * shape.intermediate >= FEWEST_ELEMENTS for shape in SHAPES.values())
