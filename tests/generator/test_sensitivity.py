"""What costs the metric stays unquantised, no more than that, and once it is known it is not measured again."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import make, pairs, signature
from tiny_training import change, write_examples, write_training
from tritonpress_generator import cli, export, repository
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import GateError, InputError
from tritonpress_generator.graph import NO_MATERIAL, GraphMaterial, fuse, qdq, quantize
from tritonpress_generator.infer import Array
from tritonpress_generator.kept import Kept
from tritonpress_generator.onnx_graph import GraphEditor, normalized
from tritonpress_generator.sensitivity import Measured

MODEL = make("bert", export.ATTENTION, "span")
FP32 = export.export(MODEL, signature(MODEL))
SAMPLES = [pairs([1 + i % 50], seed=i) for i in range(16)]
FEED = pairs([3, 17, 1, 30], seed=99)
COSTLY = "/encoder/layer.1/output/dense/MatMul"


def with_an_outlier() -> onnx.ModelProto:
    """Returns a model in which one channel of one product's activation is most of what it reads, and unwanted."""
    model = onnx.ModelProto()
    model.CopyFrom(FP32)
    editor = GraphEditor(model)
    node = next(node for node in model.graph.node if node.name.endswith(COSTLY))
    for tensor in model.graph.initializer:
        if tensor.name == node.input[1]:
            weight = 50 * onnx.numpy_helper.to_array(tensor)
            weight[5] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    shift = np.zeros(64, np.float32)
    shift[5] = 300
    editor.add_constant("outlier", shift)
    add = onnx.helper.make_node("Add", [node.input[0], "outlier"], ["shifted"], name="shifted")
    index = list(model.graph.node).index(node)
    node.input[0] = "shifted"
    model.graph.node.insert(index, add)
    return model


OUTLIER = with_an_outlier()
FP32_PLAIN = normalized(FP32)


class Score:
    """One minus the relative error of the outputs, and how often it was asked."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.asked = 0
        self._expected = session_infer(model.SerializeToString())(FEED)

    def __call__(self, model: onnx.ModelProto) -> float:
        self.asked += 1
        got = session_infer(model.SerializeToString())(FEED)
        errors = [np.linalg.norm(got[n] - answer) / np.linalg.norm(answer) for n, answer in self._expected.items()]
        return 1 - float(np.mean(errors))


def products_left(graph: onnx.ModelProto) -> list[str]:
    """Returns the names of the products of constants that are computed in FP32, but for the head's."""
    editor = GraphEditor(graph)
    nodes = [node for node in graph.graph.node if node.op_type == "MatMul"]
    return [node.name for node in nodes if (w := editor.constant(node.input[1])) is not None and w.shape[1] > 2]


@pytest.mark.parametrize("graph_pass", [qdq, quantize])
def test_what_costs_is_left_out_and_the_rest_is_not(graph_pass: ModuleType, tmp_path: Path) -> None:
    config = {"calibration": "min_max", "smooth": False}
    score = Score(OUTLIER)
    everything = graph_pass.apply(OUTLIER, graph_pass.Config(**config), SAMPLES)
    assert products_left(everything) == []
    assert score(everything) < 0.93
    kept = Kept(tmp_path)
    material = GraphMaterial(kept, score, held_out=lambda: "these")
    graph = graph_pass.apply(OUTLIER, graph_pass.Config(keep=0.93, **config), SAMPLES, material)
    left = products_left(graph)
    assert any(name.endswith(COSTLY) for name in left)
    assert len(left) < 6
    assert score(graph) >= 0.93

    asked = score.asked
    kept.save()
    for held_out, measured in (("these", False), ("others", True)):
        again = GraphMaterial(Kept(tmp_path), score, held_out=partial(str, held_out))
        same = graph_pass.apply(OUTLIER, graph_pass.Config(keep=0.93, **config), SAMPLES, again)
        assert same.SerializeToString() == graph.SerializeToString()
        assert (score.asked > asked) == measured


def test_errors_are_of_texts_of_all_lengths() -> None:
    """They come by their lengths, and of 31 the first 16 were taken."""

    def graph(operator: str) -> onnx.ModelProto:
        given, answer = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
        nodes = [onnx.helper.make_node(operator, ["x"], ["y"])]
        opsets = [onnx.helper.make_opsetid("", 17)]
        return onnx.helper.make_model(
            onnx.helper.make_graph(nodes, "one", [given], [answer]), opset_imports=opsets, ir_version=8
        )

    samples = [{"x": np.array([16.5 - number], np.float32)} for number in range(31)]
    measured = Measured(graph("Identity"), {"part": ["y"]}, lambda _: graph("Relu"), samples, NO_MATERIAL)
    assert measured.errors()["part"] > 0


def test_nothing_is_left_out_where_all_of_it_holds() -> None:
    score = Score(FP32)
    material = GraphMaterial(score=score, held_out=lambda: "these")
    config = {"calibration": "min_max", "smooth": False}
    graph = qdq.apply(FP32, qdq.Config(keep=0.5, **config), SAMPLES, material)  # type: ignore[arg-type]
    assert graph == qdq.apply(FP32, qdq.Config(**config), SAMPLES)  # type: ignore[arg-type]
    assert score.asked == 2  # unquantised, and with all of it


def test_it_gives_up_in_a_line_where_no_part_may_be_quantised() -> None:
    material = GraphMaterial(score=lambda model: float(model == FP32_PLAIN), held_out=lambda: "these")
    with pytest.raises(GateError, match=r"^qdq: keep: must leave a part to quantise, 0.99 of ") as raised:
        qdq.apply(FP32_PLAIN, qdq.Config(keep=0.99, calibration="min_max"), SAMPLES, material)
    assert raised.value.exit_status == 1
    assert str(raised.value).endswith("lower it, or leave qdq out")


@pytest.mark.parametrize(("graph_pass", "model"), [(qdq, FP32), (quantize, fuse.apply(FP32, fuse.Config(), []))])
def test_it_needs_held_out_examples(graph_pass: ModuleType, model: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="needs labelled examples; add 'data' to the recipe"):
        graph_pass.apply(model, graph_pass.Config(keep=0.9, calibration="min_max"), SAMPLES, NO_MATERIAL)


def tiny(weight: float) -> onnx.ModelProto:
    """Returns y = weight * x."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["x", "w"], ["y"])],
        "product",
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value("y", onnx.TensorProto.FLOAT, [1])],
        [onnx.numpy_helper.from_array(np.array([weight], np.float32), "w")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@settings(max_examples=40, deadline=None)
@given(costs=st.lists(st.integers(1, 100), min_size=1, max_size=12, unique=True), keep=st.floats(0.01, 1))
def test_the_fewest_parts_are_left_out_the_worst_first(costs: list[int], keep: float) -> None:
    """A part costs what it is: halving finds the shortest beginning of the order that holds."""
    total = 1000.0

    def made(left_out: Collection[str]) -> onnx.ModelProto:
        return tiny(total - sum(cost for cost in costs if str(cost) not in left_out))

    def score(model: onnx.ModelProto) -> float:
        return float(onnx.numpy_helper.to_array(model.graph.initializer[0])[0])

    feeds: list[dict[str, Array]] = [{"x": np.ones(1, np.float32)}]
    measured = Measured(
        tiny(total), {str(cost): [str(cost)] for cost in costs}, made, feeds, GraphMaterial(score=score)
    )
    order = sorted(costs, reverse=True)
    fewest = next(n for n in range(len(order) + 1) if total - sum(order[n:]) >= keep * total)
    if fewest == len(order):
        with pytest.raises(GateError, match="must leave a part to quantise"):
            measured.record(keep, where="qdq")
    else:
        record = measured.record(keep, where="qdq")
        assert record["left_out"] == [str(cost) for cost in order[:fewest]]
        assert list(record["errors"]) == [str(cost) for cost in costs]


@pytest.mark.parametrize(
    ("graph", "engine"),
    [
        pytest.param(["fuse", {"quantize": {"keep": 0.6}}], "onnxruntime", marks=pytest.mark.slow),
        pytest.param(["fuse", {"weight_only": {"bits": 4, "keep": 0.6}}], "onnxruntime", marks=pytest.mark.slow),
        pytest.param([{"qdq": {"keep": 0.6}}], "openvino", marks=pytest.mark.slow),
        pytest.param([{"nncf": {"keep": 0.6, "samples": 16}}], "openvino", marks=pytest.mark.slow),
    ],
)
def test_a_build_measures_on_held_out_examples_until_they_change(
    tmp_path: Path, graph: list[object], engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = change(write_training(tmp_path, "recommendation"), graph=graph, engine=engine)

    def record() -> tuple[Path, str]:
        assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 0
        shown = capsys.readouterr().out
        files = [(path, path.read_text()) for path in (tmp_path / "out/recommendation/kept").glob("*.json")]
        (found,) = [(path, text) for path, text in files if '"left_out"' in text]
        (noted,) = repository.read_manifest(tmp_path / "out", "recommendation")["graph"].values()
        assert noted == json.loads(found[1])["value"]
        for name, error in noted["errors"].items():
            (line,) = [line for line in shown.splitlines() if line.startswith(f"{name} ")]
            assert f"  {error:.4f}" in line
            assert line.endswith("left out") == (name in noted["left_out"])
        assert re.search(rf"^all +{noted['unquantized']:.4f}$", shown, re.M)
        return found

    path, text = record()
    # Were it measured again, this would be found in it.
    marked = text.replace('"metrics": {', '"metrics": {"99": 1, ')
    path.write_text(marked)
    assert record() == (path, marked)
    write_examples(tmp_path / "dev.jsonl", "recommendation", 12, 7)
    assert '"99": 1' not in record()[1]


def test_held_out_files_that_are_missing_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = change(write_training(tmp_path, "recommendation"), graph=["fuse", {"quantize": {"keep": 0.6}}])
    (tmp_path / "dev.jsonl").unlink()
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert re.search(r"dev.jsonl.*--data", capsys.readouterr().err.splitlines()[-1])
