"""Weights that layers share (ALBERT) stay there once, whatever is made of them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers as hf
from onnx import TensorProto, helper, numpy_helper
from tiny_sources import items, queries, wordpiece_tokenizer, write_jsonl, write_recipe
from tritonpress_generator import cli, repository
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.graph import fixed_point, qdq, quantize, weight_only
from tritonpress_generator.onnx_graph import GraphEditor
from tritonpress_generator.quantized_pairs import folded

LAYERS, WIDTH, ROWS = 6, 128, 300
SAMPLES = [{"ids": np.random.default_rng(seed).integers(0, ROWS, 20), "other": np.arange(20)} for seed in range(8)]
PASSES: list[tuple[ModuleType, dict[str, Any], float]] = [
    (weight_only, {"bits": 8}, 0.4),
    (weight_only, {"bits": 4}, 0.35),
    (quantize, {"smooth": False}, 0.4),
    (quantize, {"smooth": True}, 0.4),
    (fixed_point, {"bits": 8}, 0.4),
    (fixed_point, {"bits": 16}, 0.65),
]


def handed_on() -> onnx.ModelProto:
    """Returns layers of one weight, and two look-ups in one table, each handed on by Identity as the exporter does."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(WIDTH, WIDTH)).astype(np.float32) / np.float32(WIDTH**0.5)
    tensors = [
        numpy_helper.from_array(generator.normal(size=(ROWS, WIDTH)).astype(np.float32), "table"),
        numpy_helper.from_array(weight, "weight"),
    ]
    make = helper.make_node
    nodes = [
        make("Identity", ["table"], ["table of other"]),
        make("Gather", ["table", "ids"], ["looked up"], name="look_up"),
        make("Gather", ["table of other", "other"], ["other looked up"], name="look_up_other"),
        make("Add", ["looked up", "other looked up"], ["0"]),
    ]
    for number in range(LAYERS):
        # One channel is far larger than the others, in each layer by another factor: smoothing divides by it.
        gain = np.ones(WIDTH, np.float32)
        gain[3] = 12 + 4 * number
        tensors.append(numpy_helper.from_array(gain, f"gain {number}"))
        nodes += [
            make("Mul", [f"{number}", f"gain {number}"], [f"read {number}"]),
            make("Identity", ["weight"], [f"weight {number}"]),
            make("MatMul", [f"read {number}", f"weight {number}"], [f"product {number}"], name=f"product {number}"),
            make("Tanh", [f"product {number}"], [f"{number + 1}"]),
        ]
    ends = [helper.make_tensor_value_info(name, TensorProto.INT64, [None]) for name in ("ids", "other")]
    answer = helper.make_tensor_value_info(f"{LAYERS}", TensorProto.FLOAT, [None, WIDTH])
    graph = helper.make_graph(nodes, "layers", ends, [answer], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("graph_pass", "settings", "share"),
    PASSES,
    ids=[f"{word.__name__.rpartition('.')[2]}-{s}" for word, s, _ in PASSES],
)
def test_codes_of_a_shared_weight_are_there_once(
    graph_pass: ModuleType, settings: dict[str, Any], share: float
) -> None:
    model = handed_on()
    compressed = graph_pass.apply(model, graph_pass.Config(**settings), SAMPLES)
    onnx.checker.check_model(compressed)
    assert compressed.ByteSize() < share * model.ByteSize()
    if settings.get("smooth"):
        assert any(node.op_type == "Mul" and node.name.endswith("smooth") for node in compressed.graph.node)
    expected, got = (session_infer(graph.SerializeToString())(SAMPLES[0])[f"{LAYERS}"] for graph in (model, compressed))
    assert np.linalg.norm(got - expected) < 0.5 * np.linalg.norm(expected)


def test_smoothed_weights_that_are_shared_are_there_once() -> None:
    model = handed_on()
    graph = qdq.apply(model, qdq.Config(calibration="min_max", residual=False, attention=False), SAMPLES)
    assert any(node.name.endswith("smoothed") for node in graph.graph.node)
    codes = [tensor for tensor in folded(graph).graph.initializer if list(tensor.dims) == [WIDTH, WIDTH]]
    assert [tensor.data_type for tensor in codes] == [TensorProto.INT8]


def test_constants_are_shared_where_that_saves_something() -> None:
    graph = helper.make_graph([], "empty", [], [])
    editor = GraphEditor(helper.make_model(graph))
    large = np.arange(1024, dtype=np.float32)
    names = [editor.add_constant(name, large) for name in ("a", "b")]
    others = [("c", large.reshape(2, -1)), ("d", large.astype(np.int32)), ("e", large + 1)]
    names += [editor.add_constant(*other) for other in others]
    assert names == ["a", "a", "c", "d", "e"]
    # As every model has them by chance.
    alike = [np.zeros(1024, np.int8), np.array([768] * 3)]
    assert [editor.add_constant(f"{i}{j}", value) for i, value in enumerate(alike) for j in "xy"] == [
        "0x", "0y", "1x", "1y",
    ]  # fmt: skip
    # What went because nobody reads it is no longer there.
    editor.remove_unused()
    assert editor.add_constant("f", large) == "f"


def albert_recipe(folder: Path, **changes: Any) -> Path:
    """Returns the path of a recipe for an ALBERT of six layers, with all that it names beside it."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    wordpiece_tokenizer(checkpoint / "tokenizer.json")
    torch.manual_seed(0)
    config = hf.AlbertConfig(
        vocab_size=96, embedding_size=32, hidden_size=128, num_hidden_layers=6, num_attention_heads=2,
        intermediate_size=512, max_position_embeddings=64,
    )  # fmt: skip
    hf.AlbertModel(config).save_pretrained(checkpoint, safe_serialization=True)
    write_jsonl(folder / "catalogue.jsonl", items())
    write_jsonl(folder / "queries.jsonl", queries())
    gate = {"dataset": "queries.jsonl", "metric": "ndcg@10", "keep": 0.01, "confidence": "point"}
    return write_recipe(folder, gate=gate, **changes)


@pytest.mark.parametrize(
    ("graph", "engine", "share"),
    [
        (["fuse"], "onnxruntime", 1.05),
        (["fuse", {"quantize": {"samples": 64}}], "onnxruntime", 0.5),
        pytest.param(["fuse", {"weight_only": {"bits": 8}}], "onnxruntime_edge", 0.6, marks=pytest.mark.slow),
        pytest.param(["fuse", {"fixed_point": {"bits": 16}}], "onnxruntime_edge", 0.75, marks=pytest.mark.slow),
        pytest.param(["fuse", {"fixed_point": {"bits": 8}}], "onnxruntime", 0.5, marks=pytest.mark.slow),
    ],
)
def test_albert_is_built_no_larger_than_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], graph: list[Any], engine: str, share: float
) -> None:
    serve = {"max_batch_size": 8, "max_length": 48, "lengths": "exact", "steps": "single"}
    recipe = albert_recipe(tmp_path, graph=graph, engine=engine, serve=serve)
    out = tmp_path / "out"
    assert cli.main(["build", str(recipe), "--out", str(out)]) == 0
    *_, fp32, served = repository.read_manifest(out, "recommendation")["stages"]
    assert served["size_bytes"] < share * fp32["size_bytes"]
    for path in out.rglob("model.ort"):
        assert path.stat().st_size < share * fp32["size_bytes"]
    assert cli.main(["verify", str(out)]) == 0
    assert "are those of the build" in capsys.readouterr().out
