"""A divided task model answers as the model of `transformers` it was made of, padded and packed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from tiny_encoders import FAMILIES, PACKED, SMALL, feed, pairs
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto import modeling_auto
from tritonpress_generator import export, ragged
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.exchange import exchange_attention
from tritonpress_generator.signature import SEGMENTS, Output, Signature
from tritonpress_generator.task_head import SequenceHead, TaskHead, TokenHead
from tritonpress_generator.token_states import reads_segments

LENGTHS = [9, 30, 1, 17]
HEADS: dict[str, tuple[type[TaskHead], Any, Any]] = {
    "tokens": (TokenHead, hf.AutoModelForQuestionAnswering, modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING),
    "sequence": (
        SequenceHead,
        hf.AutoModelForSequenceClassification,
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    ),
}
CASES = [
    (family, head, {}) for family in FAMILIES for head in HEADS if FAMILIES[family][0] in HEADS[head][2]
] + [
    (family, "sequence", {"classifier_pooling": pooling})
    for family, pooling in [("modernbert", "mean"), ("eurobert", "bos"), ("eurobert", "mean"), ("eurobert", "late")]
]  # fmt: skip
"""Every model that `transformers` has of the families, and every way in which their heads make one vector of many."""


def make(family: str, head: str, settings: dict[str, str]) -> tuple[Any, TaskHead]:
    """Returns a seeded model of `transformers` and what it becomes."""
    config_class, values = FAMILIES[family]
    special = {"bos_token_id": 2, "eos_token_id": 3}
    divide, auto_class, _ = HEADS[head]
    torch.manual_seed(0)
    config = config_class(**values, **special, **settings, num_labels=2 if head == "tokens" else 3)
    model = auto_class.from_config(config).eval()
    # Random weights leave biases at 0 and answers near to each other.
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model, divide(model, lambda answer: answers(answer, head))


def answers(answer: Any, head: str) -> Any:
    return (answer.start_logits, answer.end_logits) if head == "tokens" else answer.logits


def inputs(model: Any) -> dict[str, torch.Tensor]:
    batch = {name: torch.from_numpy(array) for name, array in pairs(LENGTHS).items()}
    if not reads_segments(getattr(model, model.base_model_prefix)):
        del batch[SEGMENTS]
    return batch


def listed(answer: Any) -> list[torch.Tensor]:
    return list(answer) if isinstance(answer, tuple) else [answer]


@pytest.mark.parametrize(("family", "head", "settings"), CASES)
def test_answers_are_those_of_transformers(family: str, head: str, settings: dict[str, str]) -> None:
    model, divided = make(family, head, settings)
    batch = inputs(model)
    divided.check(model)
    present = batch["attention_mask"].bool() if head == "tokens" else slice(None)
    with torch.inference_mode():
        expected = listed(answers(model(**batch), head))
        got = listed(divided(*batch.values()))
    for tensor, own in zip(got, expected, strict=True):
        torch.testing.assert_close(tensor[present], own[present], rtol=0, atol=1e-6)
    assert (expected[0].std(0) > 0.01).all()


@pytest.mark.parametrize(("family", "head", "settings"), [case for case in CASES if case[0] in PACKED])
def test_packed_answers_are_those_of_the_padded_form(family: str, head: str, settings: dict[str, str]) -> None:
    model, divided = make(family, head, settings)
    batch = inputs(model)
    mask = batch["attention_mask"].bool()
    with torch.inference_mode():
        padded = listed(divided(*batch.values()))
        exchange_attention(divided.encoder, ragged.ATTENTION)
        segments = [batch[SEGMENTS][mask]] if SEGMENTS in batch else []
        packed = listed(ragged.Packed(divided)(batch["input_ids"][mask], torch.tensor(LENGTHS), *segments))
    for tensor, own in zip(packed, padded, strict=True):
        torch.testing.assert_close(tensor, own[mask] if head == "tokens" else own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["modernbert", "eurobert"])
def test_every_pooling_is_exported(family: str) -> None:
    pooling = {"modernbert": "mean", "eurobert": "late"}[family]
    gives = Signature({"logits": Output(3)})
    _, reference = make(family, "sequence", {"classifier_pooling": pooling})
    torch_infer = export.torch_infer(reference, gives)
    feeds = [feed(LENGTHS), feed([1]), feed([40] * 3)]
    for form, exported in (("padded", export), ("ragged", ragged)):
        _, divided = make(family, "sequence", {"classifier_pooling": pooling})
        exchange_attention(divided.encoder, exported.ATTENTION)
        infer = session_infer(exported.export(divided, gives).SerializeToString())
        export.check_parity(torch_infer, infer if form == "padded" else ragged.as_padded(infer, gives), feeds, gives)


def test_model_that_reads_its_states_otherwise_is_refused() -> None:
    class OfTheLast(hf.BertForSequenceClassification):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
            last = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state[:, -1]
            return SequenceClassifierOutput(logits=self.classifier(last))

    xlnet = {"vocab_size": 90, "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64}
    models = [OfTheLast(hf.BertConfig(**SMALL)), hf.XLNetForSequenceClassification(hf.XLNetConfig(**xlnet))]
    for model in models:
        divided = SequenceHead(model.eval(), lambda answer: answer.logits)
        with pytest.raises(InputError, match=r"must answer from its encoder's last states .*, and does not; give"):
            divided.check(model)


def test_weights_are_shared_with_the_model() -> None:
    model, divided = make("bert", "sequence", {})
    assert {id(p) for p in divided.parameters()} == {id(p) for p in model.parameters()}
