"""Weights alone as codes: within half a scale, a fraction of the size, near FP32, and served; or refused in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import asked, make, pairs, signature
from tiny_sources import write_recipe, write_task
from tiny_training import change
from tritonpress_generator import cli, export, repository
from tritonpress_generator import recipe as recipes
from tritonpress_generator.engines import openvino
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import fuse, weight_only
from tritonpress_generator.infer import Array
from tritonpress_generator.quantization import quantize_blocks

MODEL = make("bert", export.ATTENTION, "span")
FP32 = export.export(MODEL, signature(MODEL))
FUSED = fuse.apply(FP32, fuse.Config(), [])
FEED = pairs([3, 17, 1, 30], seed=99)
BITS = st.sampled_from([4, 8])
WEIGHTS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.floats(-1e4, 1e4, width=32)
)


def values(codes: Array, scales: Array, zero_points: Array, rows: int) -> NDArray[np.float64]:
    """Returns what the codes of a matrix stand for, `(rows, columns)`."""
    blocks = (codes.astype(np.float64) - zero_points[..., None]) * scales[..., None]
    return blocks.reshape(len(codes), -1).T[:rows]


@given(WEIGHTS, BITS, st.sampled_from([16, 32]), st.booleans())
def test_error_is_at_most_half_a_scale(weight: Array, bits: int, block_size: int, symmetric: bool) -> None:
    codes, scales, zero_points = quantize_blocks(weight, bits=bits, block_size=block_size, symmetric=symmetric)
    assert codes.dtype == zero_points.dtype == np.uint8
    assert codes.max() < 2**bits
    assert zero_points.max() < 2**bits
    of_each = np.repeat(scales.T, block_size, axis=0)[: len(weight)].astype(np.float64)
    error = np.abs(values(codes, scales, zero_points, len(weight)) - weight)
    assert np.all(error <= 0.501 * of_each + 1e-6 * np.abs(weight))
    # The scale is no larger than the block's range needs.
    limit = np.abs(weight).max() / (2 ** (bits - 1) - 1)
    assert np.all(of_each <= limit * 1.001 + 1e-29)


@given(WEIGHTS, BITS, st.booleans())
def test_zero_stays_zero_and_nothing_wraps(weight: Array, bits: int, symmetric: bool) -> None:
    weight[0] = 0
    codes, scales, zero_points = quantize_blocks(weight, bits=bits, block_size=16, symmetric=symmetric)
    found = values(codes, scales, zero_points, len(weight))
    assert np.all(found[0] == 0)
    assert np.all(found * weight >= 0)


def product(weight: Array) -> onnx.ModelProto:
    """Returns `y = x @ weight`."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y")]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 80),
    columns=st.integers(16, 40),
    bits=BITS,
    block_size=st.sampled_from([16, 32, 64]),
    symmetric=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_onnx_runtime_reads_the_codes_as_they_are_meant(
    rows: int, columns: int, bits: int, block_size: int, symmetric: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(rows, columns)).astype(np.float32) + generator.normal(size=columns)
    weight = weight.astype(np.float32)
    how: dict[str, Any] = {"bits": bits, "block_size": block_size, "symmetric": symmetric}
    graph = weight_only.apply(product(weight), weight_only.Config(**how, accuracy_level=1), [])
    given_ = session_infer(graph.SerializeToString())({"x": np.eye(rows, dtype=np.float32)})["y"]
    assert np.abs(given_ - values(*quantize_blocks(weight, **how), rows)).max() <= 1e-5 * np.abs(weight).max()


@pytest.mark.parametrize(
    ("bits", "symmetric", "bound"), [(8, False, 0.02), (8, True, 0.02), (4, False, 0.2), (4, True, 0.25)]
)
@pytest.mark.parametrize("graph", [FP32, FUSED], ids=["plain", "fused"])
def test_answers_are_near_fp32_and_alike_in_any_company(
    graph: onnx.ModelProto, bits: int, symmetric: bool, bound: float
) -> None:
    config = weight_only.Config(bits=bits, symmetric=symmetric)  # type: ignore[arg-type]
    compressed = weight_only.apply(graph, config, [])
    products = [node for node in compressed.graph.node if node.op_type == "MatMulNBits"]
    # Fused, a layer's query, key and value are one product.
    assert len(products) == (8 if graph is FUSED else 12)
    infer = session_infer(compressed.SerializeToString())
    together, expected = infer(FEED), session_infer(FP32.SerializeToString())(FEED)
    for name, answer in expected.items():
        assert 0 < np.abs((together[name] - answer) * FEED["attention_mask"]).max() <= bound
    for row, length in enumerate(FEED["attention_mask"].sum(1)):
        alone = infer({name: tensor[row : row + 1, :length] for name, tensor in FEED.items()})
        for name, answer in alone.items():
            assert np.abs(answer[0] - together[name][row, :length]).max() <= 1e-5


def test_codes_take_the_bytes_that_they_should() -> None:
    weight = np.random.default_rng(0).normal(size=(256, 512)).astype(np.float32)
    sizes = {}
    for bits in (4, 8):
        for symmetric in (False, True):
            config = weight_only.Config(bits=bits, symmetric=symmetric)  # type: ignore[arg-type]
            sizes[bits, symmetric] = weight_only.apply(product(weight), config, []).ByteSize()
    for (bits, symmetric), size in sizes.items():
        # A code a weight; 4 bytes and, where it is not in the middle, a zero point for every 32.
        expected = weight.size * (bits + (32 + (0 if symmetric else bits)) / 32) / 8
        assert expected <= size <= expected + 1000


def test_embedding_tables_stay_where_they_are_asked_to() -> None:
    weight = np.random.default_rng(0).normal(size=(300, 32)).astype(np.float32)
    model = product(np.eye(32, dtype=np.float32))
    model.graph.input[0].type.CopyFrom(helper.make_tensor_value_info("x", TensorProto.INT64, [None]).type)
    model.graph.initializer.append(numpy_helper.from_array(weight, "table"))
    model.graph.node.insert(0, helper.make_node("Gather", ["table", "x"], ["rows"], name="look up"))
    model.graph.node[1].input[0] = "rows"
    chosen = {"x": np.array([0, 7, 299])}
    for embeddings, bound in ((False, 1e-2), (True, 3e-2)):
        config = weight_only.Config(bits=8, embeddings=embeddings, accuracy_level=1)
        graph = weight_only.apply(model, config, [])
        kinds = {tensor.data_type for tensor in graph.graph.initializer if len(tensor.dims) == 2 and 300 in tensor.dims}
        assert (TensorProto.INT8 in kinds) == embeddings
        given_ = session_infer(graph.SerializeToString())(chosen)["y"]
        assert np.abs(given_ - weight[chosen["x"]]).max() <= bound


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.05), (4, 0.25)])
def test_openvino_keeps_the_codes(tmp_path: Path, bits: int, bound: float) -> None:
    pytest.importorskip("openvino", reason="needs the extra openvino")
    graph = weight_only.apply(FP32, weight_only.Config(bits=bits), [])  # type: ignore[arg-type]
    gives = signature(MODEL)
    config = openvino.Config()
    sizes = {}
    for name, built in (("fp32", FP32), ("codes", graph)):
        openvino.build(openvino.rungs(FP32, built, config), tmp_path / name, config, asked(gives))
        sizes[name] = (tmp_path / name / "model.bin").stat().st_size
    assert sizes["codes"] < (0.65 if bits == 8 else 0.55) * sizes["fp32"]
    infer = openvino.load(tmp_path / "codes", config, threads=1)
    together, expected = infer(FEED), session_infer(FP32.SerializeToString())(FEED)
    for name, answer in expected.items():
        assert np.abs((together[name] - answer) * FEED["attention_mask"]).max() <= bound


@pytest.mark.parametrize(
    ("engine", "steps", "lengths", "bits"),
    [
        ("onnxruntime", "single", "ragged", 8),
        pytest.param("onnxruntime", "ensemble", {"ragged": {"max_tokens": 800}}, 4, marks=pytest.mark.slow),
        pytest.param("onnxruntime_edge", "single", "exact", 8, marks=pytest.mark.slow),
        pytest.param("openvino", "ensemble", [16, 48], 8, marks=pytest.mark.slow),
    ],
)
def test_built_and_verified(
    tiny_sources: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    engine: str,
    steps: str,
    lengths: object,
    bits: int,
) -> None:
    serve = {"max_batch_size": 8, "max_length": 48, "lengths": lengths, "steps": steps}
    fused = [] if engine == "openvino" else ["fuse"]
    graph = [*fused, {"weight_only": {"bits": bits}}]
    changes: dict[str, Any] = {"engine": engine, "graph": graph, "serve": serve}
    changes |= {"checkpoint": {"source": str(tiny_sources / "checkpoint")}}
    for name in ("catalogue.jsonl", "queries.jsonl"):
        (tmp_path / name).write_bytes((tiny_sources / name).read_bytes())
    recipe = write_recipe(tmp_path, **changes)
    out = tmp_path / "out"
    assert cli.main(["build", str(recipe), "--out", str(out)]) == 0
    assert cli.main(["verify", str(out)]) == 0
    assert "are those of the build" in capsys.readouterr().out
    *_, fp32, served = repository.read_manifest(out, "recommendation")["stages"]
    assert served["size_bytes"] < 0.8 * fp32["size_bytes"]


def test_8_bits_in_tritons_own_backend_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = change(write_task(tmp_path, "question_answering"), graph=["fuse", {"weight_only": {"bits": 8}}])
    change(recipe, serve={"max_length": 48, "steps": "scripting"})
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert "must have weights of 4 bits, has 8: Triton's own backend (24.10: ONNX Runtime 1.19) has no others" in last
    assert not list((tmp_path / "out").rglob("model.onnx"))


def test_what_cannot_be_quantised_is_refused() -> None:
    once = weight_only.apply(FUSED, weight_only.Config(bits=4), [])
    for model, config, message in (
        (once, {}, "no product with constant FP32 weights; quantise it only once"),
        (FUSED, {"exclude": ["*"]}, "exclude: must leave a product to quantise, all 8 match"),
        (FUSED, {"exclude": ["*layer.9*"]}, r"'\*layer.9\*' matches none of 8"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            weight_only.apply(model, weight_only.Config(bits=4, **config), [])  # type: ignore[arg-type]
        assert "\n" not in str(raised.value)
    for wrong in ({"bits": 3}, {"bits": 4, "block_size": 24}, {"bits": 4, "accuracy_level": 2}):
        with pytest.raises(InputError, match=r"recipe: graph\[0\].weight_only.*should be"):
            recipes.staged("graph", {"weight_only": wrong}, path=Path("recipe"), key="graph[0]")


def test_excluded_products_stay_in_fp32() -> None:
    graph = weight_only.apply(FUSED, weight_only.Config(bits=4, exclude=["*layer.1*"]), [])
    assert sum(node.op_type == "MatMulNBits" for node in graph.graph.node) == 4
    assert all("layer.1" not in node.name for node in graph.graph.node if node.op_type == "MatMulNBits")
