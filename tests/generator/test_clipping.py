"""A range that is chosen by a share of the values holds that share; what is rare and large is clipped in INT8 too."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import feed, make, signature
from tritonpress_generator import calibration, export
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.graph import fuse, quantize
from tritonpress_generator.infer import Array
from tritonpress_generator.onnx_graph import GraphEditor

BINS = 512
"""Of magnitudes."""
NORMAL = np.random.default_rng(0).normal(size=(200, 100)).astype(np.float32)


def handed_on() -> onnx.ModelProto:
    """Returns y = x."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize(
    "values",
    [NORMAL, np.maximum(NORMAL, 0), -np.abs(NORMAL), NORMAL - 3, np.zeros_like(NORMAL)],
    ids=["both sides", "positive", "negative", "shifted", "zeros"],
)
def test_the_share_is_held_and_little_more(values: Array, percentile: float) -> None:
    magnitudes = np.abs(values)
    largest = float(magnitudes.max())
    samples = [{"x": part} for part in np.split(values, 4)]
    found = calibration.clipped(
        handed_on(), {"y": largest}, samples, method="percentile", percentile=percentile, divided=lambda _, x: x
    )["y"]
    assert found <= largest
    wanted = percentile / 100
    assert np.mean(magnitudes <= found * (1 + 1e-6)) >= wanted
    if largest:
        assert np.mean(magnitudes < found - 1.001 * largest / BINS) < wanted


def product(weight: Array) -> onnx.ModelProto:
    """Returns y = x @ weight."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def grids(graph: onnx.ModelProto) -> list[tuple[float, float]]:
    """Returns the ends of the range of every activation that is quantised."""
    editor = GraphEditor(graph)
    found = []
    for node in graph.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero_point = (float(np.asarray(editor.constant(name))) for name in node.input[1:])
            found.append((-zero_point * scale, (255 - zero_point) * scale))
    return found


def ranges_of(graph: onnx.ModelProto, samples: list[dict[str, Array]], **config: Any) -> list[tuple[float, float]]:
    return grids(quantize.apply(graph, quantize.Config(**config), samples))


METHODS: list[dict[str, Any]] = [{"calibration": "entropy"}, {"calibration": "percentile", "percentile": 99.9}]
WEIGHT = np.random.default_rng(1).normal(size=(64, 24)).astype(np.float32)


def with_one_large(least: float, *, first: float = 1) -> tuple[Array, list[dict[str, Array]]]:
    """Returns activations of at least `least`, whose first channel is `first` times the others; the samples have one
    that is larger than all of them."""
    rows = np.maximum(np.random.default_rng(0).normal(size=(2000, 64)), least).astype(np.float32)
    rows[:, 0] *= first
    seen = rows.copy()
    seen[7, 5] = 80
    return rows, [{"x": part} for part in np.split(seen, 20)]


def error(graph: onnx.ModelProto, rows: Array) -> float:
    """Returns the mean error of x @ `WEIGHT`, relative to the mean magnitude."""
    exact = rows @ WEIGHT
    return float(
        np.abs(session_infer(graph.SerializeToString())({"x": rows})["y"] - exact).mean() / np.abs(exact).mean()
    )


@pytest.mark.parametrize("method", METHODS, ids=["entropy", "percentile"])
def test_a_rare_large_value_does_not_widen_the_range(method: dict[str, Any]) -> None:
    rows, samples = with_one_large(-9)
    configs = [quantize.Config(smooth=False, **config) for config in ({}, method)]
    every, clipped = (quantize.apply(product(WEIGHT), config, samples) for config in configs)
    (((low, high),), ((low_clipped, high_clipped),)) = grids(every), grids(clipped)
    assert 0 < high_clipped < 0.5 * high
    assert 1.01 * low <= low_clipped < 0
    assert error(clipped, rows) < 0.5 * error(every, rows)
    assert error(clipped, rows) < 0.03


@pytest.mark.parametrize("method", METHODS, ids=["entropy", "percentile"])
def test_a_smoothed_range_is_clipped_as_it_is_smoothed(method: dict[str, Any]) -> None:
    rows, samples = with_one_large(-9, first=50)
    every, clipped = (quantize.apply(product(WEIGHT), quantize.Config(**config), samples) for config in ({}, method))
    for graph in (every, clipped):
        assert [node.op_type for node in graph.graph.node] == ["Mul", "QuantizeLinear", "MatMulIntegerToFloat"]
    (((low, high),), ((low_clipped, high_clipped),)) = grids(every), grids(clipped)
    assert 0 < high_clipped < 0.9 * high
    assert 0.9 * low < low_clipped < 0
    assert error(clipped, rows) < 0.05


@pytest.mark.parametrize("method", METHODS, ids=["entropy", "percentile"])
def test_an_end_that_lies_near_0_stays(method: dict[str, Any]) -> None:
    _, samples = with_one_large(-0.17)
    ((low, high),) = ranges_of(product(WEIGHT), samples, smooth=False, **method)
    assert low == pytest.approx(-0.17, abs=(high - low) / 255)
    assert 2 < high < 40


def test_products_that_read_one_tensor_are_clipped_each_as_it_is_smoothed() -> None:
    _, samples = with_one_large(-9, first=50)
    model = product(WEIGHT)
    # By this weight, which has what the first channel needs, that channel is no larger than the others.
    other = WEIGHT / np.array([50] + [1] * 63, np.float32)[:, None]
    model.graph.initializer.append(numpy_helper.from_array(other, "other"))
    model.graph.node.append(helper.make_node("MatMul", ["x", "other"], ["z"], name="second"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None, None]))
    together = ranges_of(model, samples, calibration="percentile", percentile=99.9)
    alone = [
        ranges_of(product(weight), samples, calibration="percentile", percentile=99.9) for weight in (WEIGHT, other)
    ]
    assert together == [ends for (ends,) in alone]
    assert together[0] != together[1]


@pytest.mark.parametrize("method", METHODS, ids=["entropy", "percentile"])
def test_a_models_answers_stay_near_fp32s(method: dict[str, Any]) -> None:
    model = make("bert", export.ATTENTION, "mean")
    fp32 = fuse.apply(export.export(model, signature(model)), fuse.Config(), [])
    samples = [feed([1 + i % 50], seed=i) for i in range(24)]
    asked = feed([3, 17, 1, 30], seed=99)
    seen, (expected,) = ranges_of(fp32, samples), session_infer(fp32.SerializeToString())(asked).values()
    clipped = quantize.apply(fp32, quantize.Config(**method), samples)
    found = grids(clipped)
    assert len(found) == len(seen)
    assert all(
        low >= least * 1.01 and high <= most * 1.01 for (low, high), (least, most) in zip(found, seen, strict=True)
    )
    assert found != seen
    (got,) = session_infer(clipped.SerializeToString())(asked).values()
    cosines = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.99
