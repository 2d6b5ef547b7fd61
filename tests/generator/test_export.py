"""The ONNX form answers as torch does, for every family of encoders, at every length and padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import FAMILIES, FUSED, SMALL, feed, make
from tritonpress_generator import export
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import fuse, quantize
from tritonpress_generator.infer import Infer
from tritonpress_generator.tasks.recommendation import Head


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_with_torch(family: str) -> None:
    reference = export.torch_infer(make(family, "sdpa"), ("embedding",))
    model = export.export(make(family, export.ATTENTION), {"embedding": 32})
    feeds = [feed([1]), feed([2]), feed([7]), feed([64]), feed([5, 5]), feed([3, 17, 1, 30])]
    parity = export.check_parity(reference, session_infer(model.SerializeToString()), feeds)
    assert parity.max_absolute_error <= export.ABSOLUTE_TOLERANCE
    fused = fuse.apply(model, fuse.Config(), [])
    assert sum(node.op_type == "If" for node in fused.graph.node) == (2 if family in FUSED else 0)
    export.check_parity(reference, session_infer(fused.SerializeToString()), feeds)
    assert (model.ir_version, {o.domain: o.version for o in model.opset_import}[""]) == (8, 17)


def test_parity_check_fails_on_another_model() -> None:
    model = make("bert", "sdpa")
    torch.manual_seed(1)
    other = Head(hf.BertModel(hf.BertConfig(**SMALL)).eval(), "mean").eval()
    with pytest.raises(InputError, match="ONNX must answer as torch within"):
        export.check_parity(
            export.torch_infer(model, ("embedding",)), export.torch_infer(other, ("embedding",)), [feed([4])]
        )


def test_parity_check_fails_on_nan() -> None:
    infer: Infer = lambda _: {"embedding": np.full((1, 2), np.nan, np.float32)}  # noqa: E731
    with pytest.raises(InputError, match="ONNX must answer"):
        export.check_parity(infer, infer, [feed([4])])


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    return fuse.apply(export.export(make("bert", export.ATTENTION), {"embedding": 32}), fuse.Config(), [])


@pytest.fixture(scope="module")
def int8(fp32: onnx.ModelProto) -> onnx.ModelProto:
    return quantize.apply(fp32, quantize.Config(), [feed([4 + i % 50], seed=i) for i in range(32)])


def test_int8_is_close_to_fp32_and_smaller(fp32: onnx.ModelProto, int8: onnx.ModelProto) -> None:
    before, after = session_infer(fp32.SerializeToString()), session_infer(int8.SerializeToString())
    sample = feed([12, 40, 3], seed=99)
    cosine = (before(sample)["embedding"] * after(sample)["embedding"]).sum(axis=1)
    assert cosine.min() > 0.99
    # Only the products with constant weights: pooling multiplies activations with the mask.
    assert [
        n.name
        for n in int8.graph.node
        if n.op_type == "MatMul" and n.input[1] in {i.name for i in int8.graph.initializer}
    ] == []
    assert sum(n.op_type == "MatMulIntegerToFloat" for n in int8.graph.node) == 8
    activations = {n.input[4] for n in int8.graph.node if n.op_type == "MatMulIntegerToFloat"}
    types = {i.name: i.data_type for i in int8.graph.initializer}
    assert {types[name] for name in activations} == {onnx.TensorProto.UINT8}


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 64), min_size=2, max_size=8), seed=st.integers(0, 1000))
def test_answer_does_not_depend_on_neighbours(int8: onnx.ModelProto, lengths: list[int], seed: int) -> None:
    infer = session_cache(int8)
    together = feed(lengths, seed)
    answers = infer(together)["embedding"]
    for row, length in enumerate(lengths):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in together.items()}
        # The encoder is equal to the last bit; the mean over a padded row may round otherwise.
        assert np.abs(infer(alone)["embedding"][0] - answers[row]).max() <= 1e-6


def test_quantising_without_texts_or_twice_is_refused(fp32: onnx.ModelProto, int8: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="at least 1 text"):
        quantize.apply(fp32, quantize.Config(), [])
    with pytest.raises(InputError, match="quantise it only once"):
        quantize.apply(int8, quantize.Config(), [feed([4])])


_sessions: dict[int, Infer] = {}


def session_cache(model: onnx.ModelProto) -> Infer:
    if id(model) not in _sessions:
        _sessions[id(model)] = session_infer(model.SerializeToString())
    return _sessions[id(model)]


def test_engine_refuses_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match="ONNX Runtime refuses the model"):
        session_infer(tmp_path / "model.onnx")
