"""Uniform affine quantisation keeps its error bound and never wraps round."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.graph import quantize
from tritonpress_generator.quantization import (
    INT7_MAX,
    INT8_MAX,
    quantize_symmetric,
    quantize_uint8,
    symmetric_scale,
    uint8_parameters,
)

ARRAYS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-1e4, 1e4, width=32)
)


@given(ARRAYS)
def test_uint8_error_is_at_most_half_a_scale(values: np.ndarray) -> None:
    scale, zero_point = uint8_parameters(float(values.min()), float(values.max()))
    codes = quantize_uint8(values, scale, zero_point)
    back = (codes.astype(np.float64) - float(zero_point)) * float(scale)
    # At the ends of the range too: the zero point is rounded, so that they lie half a step outside the grid at most.
    assert np.all(np.abs(back - values) <= float(scale) * 0.501 + 1e-6 * np.abs(values))


@given(ARRAYS)
def test_order_is_kept_and_the_largest_value_stays_the_largest(values: np.ndarray) -> None:
    scale, zero_point = uint8_parameters(float(values.min()), float(values.max()))
    codes = quantize_uint8(values, scale, zero_point)
    assert codes.ravel()[values.argmax()] == codes.max()
    beyond = quantize_uint8(np.array([np.abs(values).max() * 4 + 1e3], np.float32), scale, zero_point)
    assert beyond[0] == 255


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_zero_is_exact(low: float, high: float) -> None:
    scale, zero_point = uint8_parameters(low, high)
    assert quantize_uint8(np.zeros(1, np.float32), scale, zero_point)[0] == zero_point


@given(ARRAYS)
def test_int8_keeps_signs_and_half_a_scale_for_each_channel(values: np.ndarray) -> None:
    for axis in (0, 1):
        codes, scales = quantize_symmetric(values, axis=axis)
        assert codes.min() >= -127
        shape = (-1, 1) if axis == 0 else (1, -1)
        back = codes * scales.reshape(shape).astype(np.float64)
        assert np.all(np.abs(back - values) <= 0.501 * scales.reshape(shape) + 1e-6 * np.abs(values))
        assert np.all(np.sign(codes) * np.sign(values) >= 0)


@given(st.integers(1, 80), st.integers(16, 40), st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None)
def test_no_product_saturates_on_any_cpu(depth: int, columns: int, seed: int, extreme: bool) -> None:
    """A product of the largest codes, which a CPU without VNNI adds up in 16 bits, is what integers give."""
    generator = np.random.default_rng(seed)
    weight = generator.choice([-1.0, 1.0], (depth, columns)) if extreme else generator.normal(size=(depth, columns))
    values = np.full((3, depth), 2.0) if extreme else generator.normal(size=(3, depth))
    weight, values = weight.astype(np.float32), values.astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "product", shapes[:1], shapes[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    int8 = quantize.apply(model, quantize.Config(smooth=False), [{"x": values}])
    codes, scales = quantize_symmetric(weight, axis=1, largest_code=63)
    scale, zero_point = uint8_parameters(float(values.min()), float(values.max()))
    of_values = quantize_uint8(values, scale, zero_point).astype(np.int64) - int(zero_point)
    expected = (of_values @ codes.astype(np.int64)) * (scales.astype(np.float64) * float(scale))
    given_ = session_infer(int8.SerializeToString())({"x": values})["y"]
    assert np.allclose(given_, expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max() + 1e-3))


@given(ARRAYS, st.integers(1, 127), st.sampled_from([INT8_MAX, INT7_MAX, 448.0]))
def test_scales_of_a_number_and_of_an_array_are_the_same(values: np.ndarray, factor: int, largest_code: float) -> None:
    largest = np.abs(values).max(axis=0) * np.float32(factor)
    together = symmetric_scale(largest, largest_code)
    assert together.dtype == np.float32
    alone = [symmetric_scale(np.array(float(value)), largest_code) for value in largest]
    assert together.tolist() == [float(scale) for scale in alone]
