"""Answers: where they lie in the context, their order, that there may be none, batches, and what the server refuses."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from tiny_sources import WORDS, contexts
from tritonpress_client import Answer, Connection, InvalidInputError, PartialFailureError, QuestionAnswering
from tritonpress_server import TritonServer

PAIRS = [(question, context) for context in contexts() for question in ("a lamp for the garden", "the kitchen")]


def places(answers: list[Answer]) -> list[tuple[str, int, int]]:
    """Returns the answers without their scores, which differ in the last digits from batch to batch."""
    return [(answer.text, answer.start, answer.end) for answer in answers]


def test_an_answer_is_a_passage_of_the_context_or_none(answerer: QuestionAnswering) -> None:
    found = [answerer.answers(question, context) for question, context in PAIRS]
    for (_, context), answers in zip(PAIRS, found, strict=True):
        assert len(set(answers)) == answerer.limits().answers == 3
        assert 1 >= answers[0].score >= answers[1].score >= answers[2].score > 0
        for answer in answers:
            assert answer.text == context[answer.start : answer.end]
            assert answer.found is (answer.end > answer.start)
    best = [answers[0].found for answers in found]
    assert any(best)
    assert not all(best)


def test_offsets_count_characters(answerer: QuestionAnswering) -> None:
    for prefix in ("\U0001f4a1 ", "\u00e9 ", "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u65e5\u672c "):
        context = prefix + contexts()[3]
        (answer,) = [answer for answer in answerer.answers("the kitchen", context) if answer.found][:1]
        assert answer.text == context[answer.start : answer.end]
        assert answer.end > len(prefix)


def test_ask_gives_the_best(answerer: QuestionAnswering) -> None:
    question, context = PAIRS[1]
    answers = answerer.answers(question, context)
    assert answerer.ask(question, context) == answers[0]
    assert answerer.answers(question, context, 1) == answers[:1]
    assert isinstance(answers[0].score, float)
    assert isinstance(answers[0].start, int)


def test_what_fills_up_a_row_is_left_out(answerer: QuestionAnswering, task_server: TritonServer) -> None:
    counts = set()
    with Connection(task_server.grpc_url) as connection:
        for question, context in product(("the kitchen", "a lamp", "red"), WORDS[:8]):
            inputs = {"QUESTION": np.array([[question]]), "CONTEXT": np.array([[context]])}
            outputs = connection.infer("question_answering", inputs)
            row = zip(outputs["ANSWER"][0].tolist(), outputs["SCORE"][0].tolist(), strict=True)
            given = [(text.decode(), score) for text, score in row if text or score]
            assert [(answer.text, answer.score) for answer in answerer.answers(question, context)] == given
            counts.add(len(given))
    assert max(counts) < answerer.limits().answers


def test_many_are_as_one_by_one_in_order(answerer: QuestionAnswering) -> None:
    assert len(PAIRS) > 2 * answerer.limits().max_batch_size
    singly = [answerer.answers(question, context) for question, context in PAIRS]
    together = answerer.answers_many(PAIRS)
    assert [places(answers) for answers in together] == [places(answers) for answers in singly]
    for alone, among_others in zip(singly, together, strict=True):
        assert [a.score for a in among_others] == pytest.approx([a.score for a in alone], abs=1e-5)
    assert places(answerer.ask_many(PAIRS)) == places([answers[0] for answers in singly])
    assert places(answerer.ask_many([list(PAIRS[0])])) == places(singly[0][:1])  # type: ignore[list-item]


@pytest.mark.parametrize("n", [0, 4, 1.5, "1", True])
def test_n_out_of_range_names_the_range(answerer: QuestionAnswering, n: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"`n` must be an integer in 1\.\.3 \(`n_best` of model .*, got {n!r}"):
        answerer.answers("what?", "a lamp", n)


def test_a_bad_pair_among_many_is_found(answerer: QuestionAnswering) -> None:
    with pytest.raises(PartialFailureError, match=r"1 of 10 pairs failed \(9\).*`pairs\[9\]`: .*CONTEXT\[0\] must"):
        answerer.ask_many([*PAIRS[:9], ("what?", "\x00\x07")])
    with pytest.raises(InvalidInputError, match=r"QUESTION\[0\] must have text"):
        answerer.ask("\x00", "a lamp")
    assert answerer.ask(*PAIRS[0])
