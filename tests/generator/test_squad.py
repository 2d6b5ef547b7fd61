"""SQuAD's files and metrics."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonpress_generator import squad
from tritonpress_generator.errors import InputError
from tritonpress_generator.squad import Answer, Question
from tritonpress_generator.tasks.question_answering import best_threshold


def question(*answers: str) -> Question:
    return Question("1", "?", "context", tuple(Answer(text, 0) for text in answers), "title")


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Cat sat on A mat.", "cat sat on mat"),
        ("an apple, the pear; a plum!", "apple pear plum"),
        ("U.S.A.", "usa"),
        ("Theatre at another", "theatre at another"),
        ("10,000", "10000"),
        ("the", ""),
        ("“the”", "“ ”"),  # only ASCII punctuation is removed, as in the official script
    ],
)
def test_normalisation_is_the_official_one(text: str, normalized: str) -> None:
    assert squad.normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("golds", "answer", "exact_match", "f1"),
    [
        (["Denver Broncos"], "the Denver Broncos", 1, 1),
        (["Denver Broncos"], "Broncos", 0, 2 / 3),
        (["Santa Clara, California", "Levi's Stadium"], "Levis Stadium", 1, 1),
        (["gold gold"], "gold", 0, 2 / 3),  # words are counted, not only looked for
        (["gold"], "silver", 0, 0),
        (["three days"], "", 0, 0),
        ([], "", 1, 1),
        ([], "something", 0, 0),
        (["the"], "", 1, 1),  # a gold answer of which nothing is left does not count
        (["in 1999", "1999"], "in the year 1999", 0, 4 / 5),
    ],
)
def test_scores_are_the_best_over_the_gold_answers(
    golds: list[str], answer: str, exact_match: float, f1: float
) -> None:
    assert squad.scores(question(*golds), answer) == (exact_match, pytest.approx(f1))


def test_metrics_are_in_percent() -> None:
    questions = [question("one two"), question("three"), question()]
    assert {name: values.tolist() for name, values in squad.evaluate(questions, ["one", "three", "four"]).items()} == {
        "f1": pytest.approx([200 / 3, 100, 0]),
        "exact_match": [0, 100, 0],
    }


def write(path: Path, *qas: dict[str, Any], context: str = "It is open from 9 to 5.") -> Path:
    data = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(qas)}]}]}
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


GOOD = {"id": "q1", "question": "When?", "answers": [{"text": "9 to 5", "answer_start": 16}]}


def test_files_of_both_versions_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", GOOD, {"id": "q2", "question": "Who?", "answers": [], "is_impossible": True})
    zipped = tmp_path / "a.json.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    first, second = squad.load(path)
    assert first.answers == (Answer("9 to 5", 16),)
    assert second.answers == ()
    assert squad.load(zipped) == [first, second]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: write(p, GOOD | {"answers": [{"text": "9 to 5", "answer_start": 15}]}),
         r"question 'q1': the context must have '9 to 5' at character 15, has ' 9 to '; correct answer_start"),
        (lambda p: write(p, GOOD | {"answers": [{"text": "9 to 5", "answer_start": -7}]}), "at character -7, has ''"),
        (lambda p: write(p, GOOD | {"answers": []}), "must have an answer, or 'is_impossible': true"),
        (lambda p: write(p, GOOD | {"answers": [{"text": ""}]}), "must have 'text' and 'answer_start'"),
        (lambda p: write(p, GOOD, GOOD), "'id' must be a string that no other question has"),
        (lambda p: write(p, GOOD | {"question": " "}), "'question' must be text, got ' '"),
        (lambda p: write(p, GOOD, context=" "), "'context' must be text"),
        (write, "must have at least one question, got none"),
        (lambda p: p.write_text("{"), "is not JSON"),
        (lambda p: p.write_text("[" * 100_000), "is not JSON"),
        (lambda p: p.write_text("[1]"), "must have SQuAD's form"),
        (lambda p: p.write_text('{"data": [{"paragraphs": [{"qas": [{}]}]}]}'), "must have SQuAD's form.*context"),
        (lambda p: p.write_bytes(b'{\n"data": "\xff"}'), r"x.json:2: must be UTF-8, got byte 0xff"),
        (lambda p: None, "x.json: cannot be read"),
    ],
)  # fmt: skip
def test_bad_file_says_which_question_and_why(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(tmp_path / "x.json")
    with pytest.raises(InputError, match=message):
        squad.load(tmp_path / "x.json")


@given(
    margins=st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=8),
    data=st.data(),
)
def test_threshold_is_the_best_of_all(margins: list[float], data: st.DataObject) -> None:
    texts = data.draw(
        st.lists(st.sampled_from(["one two", "one", "three"]), min_size=len(margins), max_size=len(margins))
    )
    golds = data.draw(st.lists(st.sampled_from([(), ("one two",)]), min_size=len(margins), max_size=len(margins)))
    questions = [question(*gold) for gold in golds]

    def total(threshold: float) -> float:
        answers = ["" if margin > threshold else text for margin, text in zip(margins, texts, strict=True)]
        return float(squad.evaluate(questions, answers)["f1"].mean())

    chosen = best_threshold(questions, texts, np.array(margins, np.float32))
    assert total(chosen) == pytest.approx(max(total(border) for border in [-9, *margins]))
