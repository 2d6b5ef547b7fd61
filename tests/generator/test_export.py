"""The ONNX form answers as torch does, for every family of encoders and every kind of head, at every length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import FAMILIES_WITH_HEADS, HEADS, PACKED, SMALL, feed, make, pairs, signature
from tiny_sources import write_task
from tiny_training import change
from tritonpress_generator import cli, export
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import fuse, quantize
from tritonpress_generator.infer import Infer
from tritonpress_generator.lengths import exact
from tritonpress_generator.signature import SEGMENTS, Output, Signature
from tritonpress_generator.tasks.recommendation import Head

FEEDS = [pairs(lengths) for lengths in ([1], [2], [7], [64], [5, 5], [3, 17, 1, 30])]


@pytest.mark.parametrize(("family", "head"), FAMILIES_WITH_HEADS)
def test_parity_with_torch(family: str, head: str) -> None:
    reference = make(family, "own", head)
    gives = signature(reference)
    torch_infer = export.torch_infer(reference, gives)
    model = export.export(make(family, export.ATTENTION, head), gives)
    assert [tensor.name for tensor in model.graph.input] == list(gives.inputs)
    parity = export.check_parity(torch_infer, session_infer(model.SerializeToString()), FEEDS, gives)
    assert parity.max_absolute_error <= export.ABSOLUTE_TOLERANCE
    fused = fuse.apply(model, fuse.Config(), [])
    assert sum(node.op_type == "If" for node in fused.graph.node) == (2 if family in PACKED else 0)
    export.check_parity(torch_infer, session_infer(fused.SerializeToString()), FEEDS, gives)
    assert (model.ir_version, {o.domain: o.version for o in model.opset_import}[""]) == (8, 17)


def test_segment_ids_change_the_answer() -> None:
    model = make("bert", export.ATTENTION, "span")
    infer = session_infer(export.export(model, signature(model)).SerializeToString())
    batch = pairs([9, 20])
    swapped = infer(batch | {SEGMENTS: (1 - batch[SEGMENTS]) * batch["attention_mask"]})
    for name, answer in infer(batch).items():
        assert np.abs(answer - swapped[name]).max() > 1e-3


def test_model_that_no_file_can_hold_is_refused_before_it_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("bert", export.ATTENTION)
    size = sum(weights.nbytes for weights in model.parameters())
    monkeypatch.setattr(export, "MOST_BYTES", size)
    export.export(model, signature(model))
    monkeypatch.setattr(export, "MOST_BYTES", size - 1)
    with pytest.raises(InputError, match=f"the weights must be at most {size - 1} bytes, .* are {size}; take some out"):
        export.export(model, signature(model))
    export.check_size(model, ["distill", "crop"])
    with pytest.raises(InputError, match="the weights must be"):
        export.check_size(model, ["restore", "distill", "sparsify"])


@pytest.mark.parametrize(
    ("passes", "done"),
    [
        ([], []),
        ([{"sparsify": {"share": 0.5}}], []),
        ([{"crop": {"layers": [0]}}, {"sparsify": {"share": 0.5}}], ["checkpoint", "baseline"]),
    ],
)
def test_build_is_refused_as_soon_as_no_pass_can_make_the_model_fit(
    passes: list[Any],
    done: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(export, "MOST_BYTES", 1000)
    recipe = change(write_task(tmp_path, "classification"), passes=passes)
    capsys.readouterr()  # a bar of the checkpoint's
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    *stages, error = capsys.readouterr().err.splitlines()
    assert error.startswith("tritonpress build: export: the weights must be at most 1000 bytes")
    assert [stage.split()[0] for stage in stages] == done


def test_parity_check_fails_on_another_model() -> None:
    model = make("bert", "own")
    gives = signature(model)
    torch.manual_seed(1)
    other = Head(hf.BertModel(hf.BertConfig(**SMALL)).eval(), "mean").eval()
    with pytest.raises(InputError, match="ONNX must answer as torch within"):
        export.check_parity(export.torch_infer(model, gives), export.torch_infer(other, gives), [feed([4])], gives)


def test_parity_check_fails_on_nan() -> None:
    infer: Infer = lambda _: {"embedding": np.full((1, 2), np.nan, np.float32)}  # noqa: E731
    with pytest.raises(InputError, match="ONNX must answer"):
        export.check_parity(infer, infer, [feed([4])], Signature({"embedding": Output(2)}))


def test_parity_check_passes_over_padding_and_over_nothing_else() -> None:
    gives = Signature({"start": Output.per_token()})

    def answer(changed: tuple[int, int] | None = None) -> Infer:
        scores = np.linspace(-9, 9, 8, dtype=np.float32).reshape(2, 4)
        if changed is not None:
            scores[changed] += 1e-3
        return lambda _: {"start": scores}

    batch = feed([2, 4])
    export.check_parity(answer(), answer((0, 2)), [batch], gives)
    with pytest.raises(InputError, match="ONNX must answer"):
        export.check_parity(answer(), answer((0, 1)), [batch], gives)


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    model = make("bert", export.ATTENTION)
    return fuse.apply(export.export(model, signature(model)), fuse.Config(), [])


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


@pytest.fixture(scope="module")
def int8_of_heads() -> dict[str, tuple[Infer, Signature]]:
    models = {}
    for head in HEADS:
        model = make("bert", export.ATTENTION, head)
        gives = signature(model)
        fused = fuse.apply(export.export(model, gives), fuse.Config(), [])
        samples = [exact.native(pairs([4 + i % 50], seed=i), gives) for i in range(32)]
        quantized = quantize.apply(fused, quantize.Config(), samples)
        models[head] = (session_infer(quantized.SerializeToString()), gives)
    return models


@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 64), min_size=2, max_size=8), seed=st.integers(0, 1000))
def test_answer_does_not_depend_on_neighbours(
    int8_of_heads: dict[str, tuple[Infer, Signature]], head: str, lengths: list[int], seed: int
) -> None:
    infer, gives = int8_of_heads[head]
    together = pairs(lengths, seed)
    answers = infer(together)
    for row, length in enumerate(lengths):
        alone = infer({name: tensor[row : row + 1, :length] for name, tensor in together.items()})
        for name, output in gives.outputs.items():
            own = answers[name][row] if output.width is not None else answers[name][row, :length]
            # The encoder is equal to the last bit; the mean over a padded row may round otherwise.
            assert np.abs(alone[name][0] - own).max() <= 1e-6


def test_quantising_without_texts_or_twice_is_refused(fp32: onnx.ModelProto, int8: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="at least 1 text"):
        quantize.apply(fp32, quantize.Config(), [])
    with pytest.raises(InputError, match="quantise it only once"):
        quantize.apply(int8, quantize.Config(), [feed([4])])


def test_products_that_are_excluded_stay_as_they_are(fp32: onnx.ModelProto) -> None:
    samples = [feed([4 + i % 50], seed=i) for i in range(4)]
    graph = quantize.apply(fp32, quantize.Config(exclude=["*layer.1/*", "*layer.0/output/*"]), samples).graph
    names = {node.name for node in graph.node if node.op_type == "MatMulIntegerToFloat"}
    assert {name.split("layer.")[1] for name in names} == {
        "0/attention/self/Attention/qkv_MatMul/int8",
        "0/attention/output/dense/MatMul/int8",
        "0/intermediate/dense/MatMul/int8",
    }
    with pytest.raises(
        InputError, match=r"exclude: must match the name of a product, '\*layer.7/\*' matches none of 8"
    ):
        quantize.apply(fp32, quantize.Config(exclude=["*layer.1/*", "*layer.7/*"]), samples)
    with pytest.raises(InputError, match="must leave a product to quantise, all 8 match"):
        quantize.apply(fp32, quantize.Config(exclude=["*"]), samples)


def test_engine_refuses_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match="ONNX Runtime refuses the model"):
        session_infer(tmp_path / "model.onnx")
