"""What the three clients share: the contract that a model must speak, and input that is refused before it is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tritonpress_client import Answer, Classification, Classifier, InvalidInputError, QuestionAnswering
from tritonpress_server import TritonServer


def test_a_model_of_another_task_is_refused(tiny_server: TritonServer) -> None:
    with Classifier(tiny_server.grpc_url, model="recommendation") as classifier:
        message = (
            r"model 'recommendation' at \S+ is not for classification: it takes QUERY and gives ITEM_ID, SCORE;"
            " name one that takes TEXT and gives LABEL, SCORE"
        )
        with pytest.raises(InvalidInputError, match=message):
            classifier.classify("red lamp")
    with QuestionAnswering(tiny_server.grpc_url, model="recommendation") as answerer:
        for ask in (answerer.ask, answerer.answers):
            with pytest.raises(InvalidInputError, match="is not for question_answering"):
                ask("what is red?", "a red lamp")  # type: ignore[operator]


def test_answers_are_values() -> None:
    assert Answer("lamp", 0.5, 6, 10).found
    assert not Answer("", 0.5, 0, 0).found
    with pytest.raises(AttributeError):
        Classification("positive", 0.5).score = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda q, _: q.ask("", "a lamp"), "`question` is empty"),
        (lambda q, _: q.ask("what?", " \n"), "`context` is empty"),
        (lambda q, _: q.answers("what?", "\ud800"), "`context` cannot be encoded as UTF-8"),
        (lambda q, _: q.ask(b"what?", "a lamp"), "`question` must be a str, got bytes"),
        (lambda q, _: q.ask_many([]), "`pairs` is empty"),
        (lambda q, _: q.ask_many("what?"), r"`pairs` must be a list of \(question, context\), got str"),
        (lambda q, _: q.ask_many(["ab"]), r"`pairs\[0\]` must be \(question, context\), got str"),
        (lambda q, _: q.ask_many([("a", "b"), ("a", "b", "c")]), r"`pairs\[1\]` must be .*, got 3 values"),
        (lambda q, _: q.answers_many([("a", "b"), ("a", "")]), r"`pairs\[1\].context` is empty"),
        (lambda _, c: c.classify(" "), "`text` is empty"),
        (lambda _, c: c.classify_many(None), "`texts` must be a list of str, got NoneType"),
        (lambda _, c: c.classify_many(["a", 3]), r"`texts\[1\]` must be a str, got int"),
    ],
)
def test_what_no_server_could_answer_is_not_sent(
    call: Callable[[QuestionAnswering, Classifier], Any], words: str, unreachable_url: str
) -> None:
    with (
        QuestionAnswering(unreachable_url) as answerer,
        Classifier(unreachable_url) as classifier,
        pytest.raises(InvalidInputError, match=words) as caught,
    ):
        call(answerer, classifier)
    assert "\n" not in str(caught.value)
