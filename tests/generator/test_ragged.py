"""The ragged form answers as torch does, whatever is packed with what, and computes no padding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import FAMILIES_WITH_HEADS, HEADS, PACKED, SMALL, feed, make, pairs, signature
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import export, ragged
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.exchange import exchange_attention
from tritonpress_generator.graph import fuse, quantize
from tritonpress_generator.infer import Infer
from tritonpress_generator.lengths import exact
from tritonpress_generator.lengths import ragged as ragged_lengths
from tritonpress_generator.signature import SEGMENTS, Output, Signature
from tritonpress_generator.steps.tokenizer.sequences import Batching, Sequences
from tritonpress_generator.tasks.recommendation import Head

EMBEDDING = Signature({"embedding": Output(32)})
FEEDS = [pairs(lengths) for lengths in ([1], [2], [64], [5, 5], [3, 17, 1, 30], [60] * 10)]
"""The last has more tokens than the model has positions."""


def exported(family: str, head: str = "mean") -> onnx.ModelProto:
    model = make(family, ragged.ATTENTION, head)
    return ragged.export(model, signature(model))


def infer(model: onnx.ModelProto, gives: Signature = EMBEDDING) -> Infer:
    return ragged.as_padded(session_infer(model.SerializeToString()), gives)


@pytest.mark.parametrize(
    ("family", "head"), [case for case in FAMILIES_WITH_HEADS if case[0] in PACKED] + [("bert", "cls"), ("bert", "all")]
)
def test_parity_with_torch(family: str, head: str) -> None:
    reference = make(family, "own", head)
    gives = signature(reference)
    torch_infer = export.torch_infer(reference, gives)
    model = exported(family, head)
    export.check_parity(torch_infer, infer(model, gives), FEEDS, gives)
    fused = fuse.apply(model, fuse.Config(), [])
    assert sum(node.op_type == "If" for node in fused.graph.node) == 2
    assert not any(node.domain == "tritonpress" for node in fused.graph.node)
    export.check_parity(torch_infer, infer(fused, gives), FEEDS, gives)
    assert (model.ir_version, {o.domain: o.version for o in model.opset_import}[""]) == (8, 17)


@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert"])
def test_plain_form_has_plain_operators_only(family: str) -> None:
    model = exported(family)
    assert {node.domain for node in model.graph.node} == {"", "tritonpress"}
    assert {node.domain for function in model.functions for node in function.node} == {""}
    assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 32
    assert [len(tensor.type.tensor_type.shape.dim) for tensor in model.graph.input] == [1, 1]


def test_engine_config_says_by_which_input_each_output_is_scattered() -> None:
    model = make("bert", ragged.ATTENTION, "all")
    gives = signature(model)
    graph = ragged.export(model, gives).graph
    config = pb.ModelConfig(input=ragged_lengths.engine_inputs(gives, "int64"))
    ragged_lengths.declare_outputs(config, gives)
    sources = {entry.target_name[0]: list(entry.source_input) for entry in config.batch_output}
    assert sources == {
        "start": ["input_ids"],
        "end": ["input_ids"],
        "relevance": ["lengths"],
        "scores": ["lengths"],
    }
    dims = {tensor.name: list(tensor.dims) for tensor in config.output}
    assert dims == {"start": [-1], "end": [-1], "relevance": [-1, 1], "scores": [-1, 3]}
    types = {tensor.name: tensor.data_type for tensor in config.input}
    assert types == {
        "input_ids": pb.TYPE_INT64,
        "lengths": pb.TYPE_INT64,
        "token_type_ids": pb.TYPE_INT64,
    }
    assert [tensor.name for tensor in graph.input] == list(types)
    ranks = {tensor.name: len(tensor.type.tensor_type.shape.dim) for tensor in graph.output}
    assert ranks == {"start": 1, "end": 1, "relevance": 2, "scores": 2}


def test_segment_ids_change_the_answer() -> None:
    model = make("bert", ragged.ATTENTION, "span")
    gives = signature(model)
    ask = infer(ragged.export(model, gives), gives)
    batch = pairs([9, 20])
    swapped = ask(batch | {SEGMENTS: (1 - batch[SEGMENTS]) * batch["attention_mask"]})
    for name, answer in ask(batch).items():
        assert np.abs(answer - swapped[name]).max() > 1e-3


def test_every_product_with_weights_is_of_packed_tokens() -> None:
    model = fuse.apply(exported("bert"), fuse.Config(), [])
    weights = {tensor.name for tensor in model.graph.initializer}
    sources = [n.input[0] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    assert len(sources) == 8
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in sources)
    answers = session_infer(model.SerializeToString())(ragged.packed(feed([3, 17, 1, 30]), EMBEDDING))
    assert {answers[name].shape[:2] for name in sources} == {(1, 51)}


def test_encoder_that_cannot_be_packed_is_refused() -> None:
    with pytest.raises(InputError, match=r"serve\.lengths: ragged needs .* deberta-v2 has not; pad instead"):
        exported("deberta-v2")


def test_encoder_that_mixes_neighbours_outside_attention_is_refused() -> None:
    small = {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16, "num_feedforward_networks": 2}
    encoder = hf.MobileBertModel(hf.MobileBertConfig(**SMALL | small)).eval()
    exchange_attention(encoder, ragged.ATTENTION)
    with pytest.raises(InputError, match="mobilebert mixes neighbours elsewhere too; pad instead"):
        ragged.export(Head(encoder, "mean").eval(), EMBEDDING)


CASES = [*(("bert", head) for head in HEADS), ("mpnet", "span"), ("modernbert", "span")]


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, str, str], Infer]:
    ready = {}
    for family, head in CASES:
        plain = exported(family, head)
        gives = signature(make(family, "own", head))
        fused = fuse.apply(plain, fuse.Config(), [])
        samples = [ragged.packed(pairs([4 + i % 50], seed=i), gives) for i in range(32)]
        graphs = {"plain": plain, "fused": fused}
        graphs |= {f"{name} int8": quantize.apply(graph, quantize.Config(), samples) for name, graph in graphs.items()}
        ready |= {(family, head, name): infer(graph, gives) for name, graph in graphs.items()}
    return ready


@pytest.mark.parametrize("name", ["plain", "fused", "plain int8", "fused int8"])
@pytest.mark.parametrize(("family", "head"), CASES)
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 64), min_size=2, max_size=8), seed=st.integers(0, 1000))
def test_answer_does_not_depend_on_neighbours(
    models: dict[tuple[str, str, str], Infer], family: str, head: str, name: str, lengths: list[int], seed: int
) -> None:
    ask = models[family, head, name]
    together = pairs(lengths, seed)
    answers = ask(together)
    for row, length in enumerate(lengths):
        alone = ask({key: tensor[row : row + 1, :length] for key, tensor in together.items()})
        for output, answer in alone.items():
            own = answers[output][row, :length] if head == "span" else answers[output][row]
            assert np.abs(answer[0] - own).max() <= 1e-6


@pytest.mark.parametrize(("family", "head"), CASES)
def test_int8_answers_as_the_padded_form_does(
    models: dict[tuple[str, str, str], Infer], family: str, head: str
) -> None:
    model = make(family, export.ATTENTION, head)
    gives = signature(model)
    padded = fuse.apply(export.export(model, gives), fuse.Config(), [])
    samples = [exact.native(pairs([4 + i % 50], seed=i), gives) for i in range(32)]
    int8 = quantize.apply(padded, quantize.Config(), samples)
    sample = pairs([12, 40, 3], seed=99)
    expected = session_infer(int8.SerializeToString())(sample)
    got = models[family, head, "fused int8"](sample)
    present = sample["attention_mask"] if head == "span" else 1
    for name, answer in expected.items():
        assert np.abs((got[name] - answer) * present).max() <= 1e-6


def test_tokenizer_packs_as_the_generator_does() -> None:
    sequences = Sequences([[5, 6, 7], [8], [9, 10]], [1, 2], [[0, 1, 1], [0], [0, 1]])
    batching = Batching(pad_id=0, packed=True)
    pairs = Signature({"start": Output.per_token()}, segments=True)
    expected = ragged.packed(batching.pad(sequences), pairs)
    for name, tensor in batching.tensors(sequences).items():
        assert tensor.shape == (1, expected[name].size)
        assert tensor.dtype == expected[name].dtype
        assert np.array_equal(tensor[0], expected[name])
