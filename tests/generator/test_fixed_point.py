"""Fixed point: codes keep their error bound and never wrap round, in NumPy and in ONNX Runtime, and halve the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import feed, make, signature
from tiny_sources import write_recipe
from tritonpress_generator import export
from tritonpress_generator import recipe as recipes
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import fixed_point, fuse
from tritonpress_generator.infer import Array
from tritonpress_generator.quantization import INT7_MAX, INT8_MAX, INT16_MAX, quantize_symmetric, symmetric_scale

MODEL = make("bert", export.ATTENTION)
FP32 = export.export(MODEL, signature(MODEL))
FUSED = fuse.apply(FP32, fuse.Config(), [])
SAMPLES = [feed([1 + i % 50], seed=i) for i in range(24)]
FEED = feed([3, 17, 1, 30], seed=99)
ARRAYS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-1e4, 1e4, width=32)
)
CODES = st.sampled_from([INT7_MAX, INT8_MAX, INT16_MAX])


@given(ARRAYS, CODES, st.booleans())
def test_error_is_at_most_half_a_scale(values: Array, largest_code: int, power_of_two: bool) -> None:
    for axis in (0, 1):
        codes, scales = quantize_symmetric(values, axis=axis, largest_code=largest_code, power_of_two=power_of_two)
        assert codes.dtype == (np.int16 if largest_code > INT8_MAX else np.int8)
        assert np.abs(codes.astype(np.int64)).max() <= largest_code
        of_each = scales.reshape((-1, 1) if axis == 0 else (1, -1)).astype(np.float64)
        assert np.all(np.abs(codes * of_each - values) <= 0.501 * of_each + 4e-7 * np.abs(values))
        assert np.all(np.sign(codes) * np.sign(values) >= 0)


@given(st.floats(1e-20, 1e20), CODES)
def test_scales_of_powers_of_two_are_the_next_larger_ones(largest: float, largest_code: int) -> None:
    exact = symmetric_scale(np.array(largest), largest_code)
    power = symmetric_scale(np.array(largest), largest_code, power_of_two=True)
    assert np.frexp(power)[0] == 0.5
    assert exact <= power < 2 * exact


def product(weight: Array) -> onnx.ModelProto:
    """Returns `y = x @ weight`."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y")]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([node], "product", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([8, 16]), st.booleans(), st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
def test_onnx_runtime_rounds_to_half_a_scale_and_saturates(
    bits: int, power_of_two: bool, largest: float, seed: int
) -> None:
    """An identity's answers are what the codes of the activations and of 1 give."""
    samples = [{"x": np.array([[largest] + [0.0] * 15], np.float32)}]
    config = fixed_point.Config(bits=bits, power_of_two_scales=power_of_two)  # type: ignore[arg-type]
    infer = session_infer(fixed_point.apply(product(np.eye(16, dtype=np.float32)), config, samples).SerializeToString())
    # Of 16 bits, one is left for what the samples had not; with a power of two, more than a code may be.
    code = {8: INT8_MAX, 16: INT16_MAX // 2}[bits]
    scale = float(symmetric_scale(np.array(np.float32(largest)), code, power_of_two=power_of_two))
    of_weight = 1 if power_of_two else 1 + 1e-6
    inside = np.random.default_rng(seed).uniform(-largest, largest, (4, 16)).astype(np.float32)
    given_ = infer({"x": inside})["y"]
    bound = 0.5 * scale + (1 / 63 if power_of_two and bits == 8 else 4e-5) * np.abs(inside) + 1e-6 * largest
    assert np.all(np.abs(given_ - inside) <= bound * of_weight)
    beyond = infer({"x": np.array([[64 * largest] * 8 + [-64 * largest] * 8], np.float32)})["y"][0]
    assert np.all(beyond[:8] >= largest * (1 - 1 / 63)) and np.all(beyond[8:] <= -largest * (1 - 1 / 63))


def worst(graph: onnx.ModelProto) -> float:
    expected, got = (session_infer(model.SerializeToString())(FEED)["embedding"] for model in (FP32, graph))
    return float(np.abs(expected - got).max())


@pytest.mark.parametrize("graph", [FP32, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize(("bits", "least", "most"), [(8, 1e-5, 2e-3), (16, 1e-8, 5e-6)])
def test_answers_stay_near_fp32(
    graph: onnx.ModelProto, power_of_two: bool, bits: int, least: float, most: float
) -> None:
    config = fixed_point.Config(bits=bits, power_of_two_scales=power_of_two)  # type: ignore[arg-type]
    fixed = fixed_point.apply(graph, config, SAMPLES)
    assert least < worst(fixed) <= most


def test_power_of_two_scales_are_such_everywhere() -> None:
    fixed = fixed_point.apply(FP32, fixed_point.Config(bits=16, power_of_two_scales=True), SAMPLES)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in fixed.graph.initializer}
    scales = [constants[node.input[1]] for node in fixed.graph.node if node.op_type == "DequantizeLinear"]
    assert len(scales) == 20  # 12 weights, and 8 activations, of which query, key and value share one a layer
    assert all(np.all(np.frexp(scale)[0] == 0.5) for scale in scales)


@pytest.mark.parametrize(("bits", "type_", "share"), [(8, TensorProto.INT8, 0.3), (16, TensorProto.INT16, 0.55)])
def test_weights_and_tables_are_codes_in_the_file(bits: int, type_: int, share: float) -> None:
    generator = np.random.default_rng(0)
    table, weight = (generator.normal(size=shape).astype(np.float32) for shape in ((300, 64), (64, 256)))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [None])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 256])
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="look_up"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    tensors = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "w")]
    model = helper.make_model(
        helper.make_graph(nodes, "rows", [ids], [answer], tensors),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    every = {"ids": np.arange(300)}
    fixed = fixed_point.apply(model, fixed_point.Config(bits=bits), [every])  # type: ignore[arg-type]
    assert fixed.ByteSize() < share * model.ByteSize()
    assert {tensor.data_type for tensor in fixed.graph.initializer if len(tensor.dims) == 2 and tensor.dims[1] > 1} == {
        type_
    }
    expected, got = (session_infer(graph.SerializeToString())(every)["y"] for graph in (model, fixed))
    assert np.abs(expected - got).max() <= {8: 0.03, 16: 1e-4}[bits] * np.abs(expected).max()


def test_weights_become_fp32_right_before_their_product(tmp_path: Path) -> None:
    """Were all of them FP32 before the first product, a file of 16 bits would take as much memory as one of 32."""
    fixed = fixed_point.apply(FUSED, fixed_point.Config(bits=16), SAMPLES)
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(fixed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, FEED)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["name"].removesuffix("_kernel_time") for event in events if event["name"].endswith("_kernel_time")]
    weights = {node.name for node in fixed.graph.node if node.op_type == "DequantizeLinear" and node.attribute}
    products = {node.name for node in fixed.graph.node if node.op_type == "MatMul" and node.input[1] in weights}
    waiting, most = 0, 0
    assert len(weights) == len(products) == 8
    for name in ran:
        waiting += (name in weights) - (name in products)
        most = max(most, waiting)
    assert (waiting, most) == (0, 1)


def test_excluded_products_stay_as_they_are() -> None:
    everything = fixed_point.apply(FP32, fixed_point.Config(bits=16), SAMPLES)
    some = fixed_point.apply(FP32, fixed_point.Config(bits=16, exclude=["*layer.1/*"]), SAMPLES)
    count = [sum(node.op_type == "DequantizeLinear" for node in graph.graph.node) for graph in (everything, some)]
    assert count == [20, 10]


@pytest.mark.parametrize(
    ("graph", "settings_", "samples", "message"),
    [
        (FP32, {}, [], "calibration needs at least 1 text, got 0"),
        (
            FP32,
            {"exclude": ["*decoder*"]},
            SAMPLES,
            r"exclude: must match the name of a product, '\*decoder\*' matches",
        ),
        (FP32, {"exclude": ["*"]}, SAMPLES, "exclude: must leave a product to quantise"),
        (fixed_point.apply(FP32, fixed_point.Config(bits=16), SAMPLES), {}, SAMPLES, "quantise it only once"),
    ],
)
def test_what_cannot_be_quantised_is_refused(
    graph: onnx.ModelProto, settings_: dict[str, list[str]], samples: list[dict[str, Array]], message: str
) -> None:
    with pytest.raises(InputError, match=f"fixed_point: .*{message}"):
        fixed_point.apply(graph, fixed_point.Config(bits=16, **settings_), samples)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [7, 32, "16", None])
def test_other_bits_are_refused(tmp_path: Path, bits: object) -> None:
    with pytest.raises(InputError, match=r"graph\[0\]\.fixed_point: bits: input should be 8 or 16, got"):
        recipes.load(write_recipe(tmp_path, graph=[{"fixed_point": {"bits": bits}}]))
    with pytest.raises(InputError, match=r"graph\[0\]\.fixed_point: bits: is missing; add it"):
        recipes.load(write_recipe(tmp_path, graph=["fixed_point"]))
