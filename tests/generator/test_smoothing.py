"""Scales of channels keep the product and lessen its error, or are left out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tritonpress_generator import smoothing
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.graph import quantize
from tritonpress_generator.quantization import INT7_MAX


def observed(rows: np.ndarray) -> smoothing.Observed:
    return smoothing.Observed(rows.min(axis=0), rows.max(axis=0), rows)


def values(channels: int, large: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns activations of which the first channel is `large` times the others, and weights."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(200, channels)).astype(np.float32)
    rows[:, 0] *= large
    return rows, generator.normal(size=(channels, 24)).astype(np.float32)


def product(weight: np.ndarray) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "product", shapes[:1], shapes[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def error(config: quantize.Config, rows: np.ndarray, weight: np.ndarray) -> float:
    int8 = quantize.apply(product(weight), config, [{"x": rows}])
    return float(np.square(session_infer(int8.SerializeToString())({"x": rows})["y"] - rows @ weight).mean())


@pytest.mark.parametrize("reduce_range", [False, True])
def test_a_channel_that_is_larger_than_the_others_costs_less(reduce_range: bool) -> None:
    rows, weight = values(64, large=50.0, seed=0)
    plain, smooth = (
        error(quantize.Config(reduce_range=reduce_range, smooth=smooth), rows, weight) for smooth in (False, True)
    )
    assert smooth < plain / 4


def test_what_has_no_such_channel_is_left_as_it_is() -> None:
    rows, weight = values(64, large=1.0, seed=0)
    assert smoothing.channel_scales(observed(rows), weight, largest_code=INT7_MAX) is None
    graph = quantize.apply(product(weight), quantize.Config(), [{"x": rows}]).graph
    assert [node.op_type for node in graph.node] == ["QuantizeLinear", "MatMulIntegerToFloat"]


@settings(deadline=None, max_examples=40)
@given(
    channels=st.integers(1, 40),
    large=st.floats(1, 1e4),
    seed=st.integers(0, 2**32 - 1),
    dead=st.booleans(),
)
def test_scales_are_finite_and_never_make_it_worse(channels: int, large: float, seed: int, dead: bool) -> None:
    rows, weight = values(channels, large, seed)
    if dead:
        rows[:, -1], weight[-1] = 0, 0
    scales = smoothing.channel_scales(observed(rows), weight, largest_code=INT7_MAX)
    if scales is not None:
        assert np.isfinite(scales).all() and (scales > 0).all()
        assert np.allclose((rows / scales) @ (weight * scales[:, None]), rows @ weight, rtol=1e-3, atol=1e-2 * large)
    both = (error(quantize.Config(smooth=smooth), rows, weight) for smooth in (True, False))
    assert next(both) <= next(both) * 1.01 + 1e-12
