"""Which bytes of a file are tensors, and of which precision."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import trees
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tritonpress_generator.packing import extents, opaque
from tritonpress_generator.packing.formats import Tensor


def cut(path: Path) -> list[Tensor]:
    """Returns the extents of a file, which are shown to be the whole of it, one behind the other."""
    with path.open("rb") as file:
        found = list(extents.cut(file, path))
    ends = [0, *(extent.offset + extent.bytes for extent in found)]
    assert [extent.offset for extent in found] == ends[:-1]
    assert ends[-1] == path.stat().st_size
    assert all(extent.bytes > 0 for extent in found)
    return found


def contents(path: Path) -> set[tuple[str, bytes]]:
    """Returns the precision and the bytes of each extent that is a tensor."""
    data = path.read_bytes()
    return {
        (extent.precision, data[extent.offset : extent.offset + extent.bytes])
        for extent in cut(path)
        if extent.precision != "other"
    }


def model() -> onnx.ModelProto:
    """Returns a model that has tensors wherever a model can have them."""
    values = trees.weights(4000)
    raw = numpy_helper.from_array(values, "raw")
    floats = helper.make_tensor("floats", TensorProto.FLOAT, [2000], values[:2000][::-1].tolist())
    int8 = numpy_helper.from_array((values * 500).astype(np.int8), "int8")
    halves = helper.make_tensor("halves", TensorProto.FLOAT16, [4000], values.astype(np.float16).tobytes(), raw=True)
    brain = helper.make_tensor("brain", TensorProto.BFLOAT16, [4000], trees.bfloat16(values), raw=True)
    inner = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["y"])], "then", [], [], [numpy_helper.from_array(values + 1, "inner")]
    )
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(values + 2))
    branch = helper.make_node("If", ["condition"], ["z"], then_branch=inner, else_branch=inner)
    small = numpy_helper.from_array(values[:4], "small")
    graph = helper.make_graph([constant, branch], "g", [], [], [raw, floats, int8, halves, brain, small])
    return helper.make_model(graph)


def test_tensors_of_onnx_are_found_wherever_they_are(tmp_path: Path) -> None:
    values = trees.weights(4000)
    (tmp_path / "model.onnx").write_bytes(model().SerializeToString())
    assert contents(tmp_path / "model.onnx") == {
        ("FP32", values.tobytes()),
        ("FP32", values[:2000][::-1].tobytes()),
        ("FP32", (values + 1).tobytes()),
        ("FP32", (values + 2).tobytes()),
        ("INT8", (values * 500).astype(np.int8).tobytes()),
        ("FP16", values.astype(np.float16).tobytes()),
        ("BF16", trees.bfloat16(values)),
    }


def test_every_large_tensor_of_a_built_model_is_found(tiny_repository: Path) -> None:
    path = next(tiny_repository.glob("*/1/model.onnx"))
    found = {data for _, data in contents(path)}
    names = {TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8}
    large = [
        tensor.raw_data
        for tensor in onnx.load(path).graph.initializer
        if tensor.data_type in names and len(tensor.raw_data) >= extents.MINIMUM_BYTES
    ]
    assert len(large) > 4
    assert found >= set(large)


def test_constants_of_openvino_are_found(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    ops = openvino.opset13
    values = trees.weights(4000).reshape(40, 100)
    x = ops.parameter([-1, 40], np.float32)
    w = ops.constant((values * 500).astype(np.int8))
    product = ops.matmul(x, ops.multiply(ops.convert(w, "f32"), ops.constant(values)), False, False)
    openvino.save_model(openvino.Model([product], [x]), tmp_path / "model.xml", compress_to_fp16=False)
    assert contents(tmp_path / "model.bin") == {
        ("FP32", values.tobytes()),
        ("INT8", (values * 500).astype(np.int8).tobytes()),
    }


def test_tensors_of_safetensors_and_numpy_are_found(tmp_path: Path) -> None:
    values = trees.weights(4000)
    tensors = {"a": values, "b": values.astype(np.float16), "c": values.astype(np.float64), "d": values[:3]}
    save_file(tensors, tmp_path / "w.safetensors")
    wanted = {("FP32", values.tobytes()), ("FP16", values.astype(np.float16).tobytes())}
    assert contents(tmp_path / "w.safetensors") == wanted
    for version in [(1, 0), (2, 0), (3, 0)]:
        with (tmp_path / "w.npy").open("wb") as file:
            np.lib.format.write_array(file, values, version)
        assert contents(tmp_path / "w.npy") == {("FP32", values.tobytes())}


def test_runs_of_numbers_are_found_in_a_file_of_no_known_format(tmp_path: Path) -> None:
    """As a plan is: code, and weights of several precisions, at offsets that are not multiples of their words."""
    values = trees.weights(500_000)
    text = "".join(f"kernel_{n} = {n * n % 97}\n" for n in range(20_000)).encode()
    parts = {
        "other": [text],
        "FP32": [values.tobytes()],
        "INT8": [np.rint(values * 800).astype(np.int8).tobytes() + b"x"],
        "FP16": [values.astype(np.float16).tobytes() + b"y"],
        "BF16": [trees.bfloat16(values)],
    }
    data = b"".join(part for several in parts.values() for part in several)
    (tmp_path / "model.plan").write_bytes(data)
    found = cut(tmp_path / "model.plan")
    begin = 0
    for precision, several in parts.items():
        end = begin + sum(map(len, several))
        inside = sum(
            max(0, min(end, extent.offset + extent.bytes) - max(begin, extent.offset))
            for extent in found
            if extent.precision == precision
        )
        # A run is found to the next window.
        assert inside > end - begin - 2 * (1 << 16), (precision, found)
        begin = end


def test_weights_are_found_in_a_flatbuffer(tmp_path: Path) -> None:
    """ONNX Runtime's own format stands for all that holds weights in a way that is not known here."""
    values = trees.weights(1_000_000).reshape(1000, 1000)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1000]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(values, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = sum(extent.bytes for extent in cut(tmp_path / "model.ort") if extent.precision == "FP32")
    assert found > 0.95 * values.nbytes


def test_digits_are_no_int8(tmp_path: Path) -> None:
    """Nothing repeats in them but the few characters, so that they are coded as INT8 is."""
    digits = np.random.default_rng(0).integers(0, 10, 300_000)
    (tmp_path / "ranges.json").write_text("".join(map(str, digits)), encoding="utf-8")
    assert contents(tmp_path / "ranges.json") == set()


def test_noise_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(np.random.default_rng(0).bytes(1 << 20))
    assert contents(tmp_path / "model.plan") == set()


def _with_garbage(position: int, garbage: bytes) -> bytes:
    data = model().SerializeToString()[:9000]
    return data[: position % len(data)] + garbage + data[position % len(data) :]


GARBAGE = st.one_of(
    st.binary(max_size=300),
    st.builds(_with_garbage, st.integers(0, 10_000), st.binary(min_size=1, max_size=8)),
    st.builds(lambda header: len(header).to_bytes(8, "little") + header, st.binary(max_size=60)),
    st.sampled_from(
        [
            b'{"a": {"dtype": "F32", "data_offsets": [0, 99999]}}',
            b'{"a": {"dtype": "F32", "data_offsets": [-8, 4000]}}',
            b'{"a": {"dtype": [], "data_offsets": [0, 1]}}',
            b'{"a": []}',
            b"[" * 100_000,
            b'{"a": {"dtype": "F32", "data_offsets": [1e999, 2]}}',
        ]
    ).map(lambda header: len(header).to_bytes(8, "little") + header + bytes(2000)),
    st.binary(max_size=40).map(lambda rest: b"\x93NUMPY\x01\x00" + rest),
)


@given(data=GARBAGE, suffix=st.sampled_from(["onnx", "safetensors", "npy", "bin", "plan"]))
@settings(deadline=None, max_examples=200)
def test_what_is_not_what_its_suffix_says_is_bytes_all_the_same(data: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / f"model.{suffix}"
        path.write_bytes(data)
        path.with_suffix(".xml").write_bytes(b'<data element_type="f32" offset="' + data[:20] + b'" size="4000"/>')
        cut(path)


def test_runs_are_found_as_the_file_is_read(tmp_path: Path) -> None:
    """So that what is kept of a file does not grow with it."""
    path = tmp_path / "model.plan"
    path.write_bytes(bytes(opaque.WINDOW_BYTES) + trees.weights(4 * opaque.WINDOW_BYTES).tobytes())
    with path.open("rb") as file:
        first = next(opaque.cut(file, 0, path.stat().st_size))
        assert (first.bytes, first.precision) == (opaque.WINDOW_BYTES, "other")
        assert file.tell() < 2 * opaque.WINDOW_BYTES
