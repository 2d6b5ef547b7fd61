"""The ragged form answers as torch does, whatever is packed with what, and computes no padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import FUSED, feed, make
from tokenizers import Tokenizer
from tritonpress_generator import export, ragged
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import fuse, quantize
from tritonpress_generator.infer import Infer
from tritonpress_generator.steps.tokenizer.text_encoder import TextEncoder

OUTPUTS = {"embedding": 32}
FEEDS = [feed([1]), feed([2]), feed([64]), feed([5, 5]), feed([3, 17, 1, 30]), feed([60] * 10)]
"""The last has more tokens than the model has positions."""


def exported(family: str, pooling: str = "mean") -> onnx.ModelProto:
    return ragged.export(make(family, ragged.ATTENTION, pooling), OUTPUTS)


def infer(model: onnx.ModelProto) -> Infer:
    return ragged.as_padded(session_infer(model.SerializeToString()), OUTPUTS)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", sorted(FUSED))
def test_parity_with_torch(family: str, pooling: str) -> None:
    reference = export.torch_infer(make(family, "sdpa", pooling), ("embedding",))
    model = exported(family, pooling)
    export.check_parity(reference, infer(model), FEEDS)
    fused = fuse.apply(model, fuse.Config(), [])
    assert sum(node.op_type == "If" for node in fused.graph.node) == 2
    assert not any(node.op_type == "RaggedAttention" for node in fused.graph.node)
    export.check_parity(reference, infer(fused), FEEDS)
    assert (model.ir_version, {o.domain: o.version for o in model.opset_import}[""]) == (8, 17)


def test_plain_form_has_plain_operators_only() -> None:
    model = exported("bert")
    assert {node.domain for node in model.graph.node} == {"", "tritonpress"}
    assert {node.domain for function in model.functions for node in function.node} == {""}
    # Triton's native backend scatters an output only if its last dimension is a constant of the graph.
    assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 32
    assert [len(tensor.type.tensor_type.shape.dim) for tensor in model.graph.input] == [1, 1, 1]


def test_every_product_with_weights_is_of_packed_tokens() -> None:
    model = fuse.apply(exported("bert"), fuse.Config(), [])
    weights = {tensor.name for tensor in model.graph.initializer}
    sources = [n.input[0] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    assert len(sources) == 8
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in sources)
    answers = session_infer(model.SerializeToString())(ragged.packed(feed([3, 17, 1, 30]), OUTPUTS))
    assert {answers[name].shape[:2] for name in sources} == {(1, 51)}


def test_encoder_that_cannot_be_packed_is_refused() -> None:
    with pytest.raises(InputError, match=r"serve\.lengths: ragged needs .* mpnet has not; pad instead"):
        exported("mpnet")


@pytest.fixture(scope="module")
def models() -> dict[str, Infer]:
    plain = exported("bert")
    fused = fuse.apply(plain, fuse.Config(), [])
    samples = [ragged.packed(feed([4 + i % 50], seed=i), OUTPUTS) for i in range(32)]
    graphs = {"plain": plain, "fused": fused}
    graphs |= {f"{name} int8": quantize.apply(graph, quantize.Config(), samples) for name, graph in graphs.items()}
    return {name: infer(graph) for name, graph in graphs.items()}


@pytest.mark.parametrize("name", ["plain", "fused", "plain int8", "fused int8"])
@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 64), min_size=2, max_size=8), seed=st.integers(0, 1000))
def test_answer_does_not_depend_on_neighbours(
    models: dict[str, Infer], name: str, lengths: list[int], seed: int
) -> None:
    together = feed(lengths, seed)
    answers = models[name](together)["embedding"]
    for row, length in enumerate(lengths):
        alone = {key: tensor[row : row + 1, :length] for key, tensor in together.items()}
        assert np.abs(models[name](alone)["embedding"][0] - answers[row]).max() <= 1e-6


def test_int8_answers_as_the_padded_form_does(models: dict[str, Infer]) -> None:
    padded = fuse.apply(export.export(make("bert", export.ATTENTION), {"embedding": 32}), fuse.Config(), [])
    int8 = quantize.apply(padded, quantize.Config(), [feed([4 + i % 50], seed=i) for i in range(32)])
    sample = feed([12, 40, 3], seed=99)
    expected = session_infer(int8.SerializeToString())(sample)["embedding"]
    assert np.abs(models["fused int8"](sample)["embedding"] - expected).max() <= 1e-6


def test_tokenizer_packs_as_the_generator_does(tiny_sources: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_sources / "checkpoint" / "tokenizer.json"))
    encoder = TextEncoder(tokenizer, max_length=20, max_bytes=100, row_elements={"embedding_elements": 32})
    rows = [[5, 6, 7], [8], [9, 10]]
    ids, mask = encoder.pad(rows)
    expected = ragged.packed({"input_ids": ids, "attention_mask": mask}, OUTPUTS)
    for name, tensor in encoder.tensors(rows).items():
        assert tensor.shape == (1, expected[name].size)
        assert tensor.dtype == expected[name].dtype
        assert np.array_equal(tensor[0], expected[name])
