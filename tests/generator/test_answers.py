"""Scores of tokens to answers: against the definition written plainly, and on every kind of character."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonpress_generator.infer import Array
from tritonpress_generator.steps.question_answering.postprocessor import Postprocessor, whole_characters

QUESTION_TOKENS = 3
"""The first token, a question of one, and what separates it from the context."""


@st.composite
def asked(draw: st.DrawFn) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Draws scores for a few questions, whose contexts have a letter a token and one to three windows."""
    counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    spans: list[list[int]] = []
    lengths: list[int] = []
    contexts = []
    for count in counts:
        first, own = 0, 0
        for _ in range(count):
            own = draw(st.integers(1, 6))
            spans += [[-1, -1]] * QUESTION_TOKENS
            spans += [[2 * i, 2 * i + 1] for i in range(first, first + own)]
            spans += [[-1, -1]]
            lengths.append(QUESTION_TOKENS + own + 1)
            first += draw(st.integers(1, own))  # windows overlap, or follow one another
        contexts.append(("x " * 40).encode())
    seed = draw(st.integers(0, 2**16))
    scores = np.random.default_rng(seed).normal(size=(2, len(spans))).astype(np.float32) * 3
    pieces = {"lengths": np.array(lengths), "counts": np.array(counts), "spans": np.array(spans, np.int32)}
    return {"start": scores[0], "end": scores[1]}, pieces, {"CONTEXT": np.array(contexts, np.object_)}


def plainly(
    outputs: dict[str, Array], pieces: dict[str, Array], longest: int, threshold: float | None
) -> list[list[tuple[float, float, int, int]]]:
    """Returns each question's answers (score, probability, start, end), best first, as the definition says."""
    answers = []
    window = token = 0
    for count in pieces["counts"]:
        every: list[tuple[float, int, int]] = []
        nulls = []
        for length in pieces["lengths"][window : window + count]:
            part = slice(token, token + length)
            start, end, spans = outputs["start"][part], outputs["end"][part], pieces["spans"][part]
            nulls.append(float(start[0] + end[0]))
            every += [
                (float(start[i] + end[j]), int(spans[i, 0]), int(spans[j, 1]))
                for i in range(length)
                for j in range(i, min(length, i + longest))
                if spans[i, 0] >= 0 and spans[j, 0] >= 0
            ]
            token += length
        window += count
        weights = [score for score, *_ in every]
        if threshold is not None:
            every.append((min(nulls) - threshold, 0, 0))
            weights.append(every[-1][0])
        total = sum(np.exp(weights))
        best: dict[tuple[int, int], float] = {}
        for score, first, last in sorted(every, key=lambda entry: -entry[0]):
            best.setdefault((first, last), score)
        rows = [(score, float(np.exp(score) / total), *place) for place, score in best.items()]
        answers.append([row for row in rows if row[2:] != (0, 0) or row is rows[0]])
    return answers


@given(
    case=asked(),
    n_best=st.integers(1, 5),
    longest=st.integers(1, 6),
    threshold=st.one_of(st.none(), st.floats(-4, 4)),
)
def test_answers_are_those_of_the_definition(
    case: tuple[dict[str, Array], dict[str, Array], dict[str, Array]],
    n_best: int,
    longest: int,
    threshold: float | None,
) -> None:
    outputs, pieces, texts = case
    answering = Postprocessor(n_best=n_best, max_answer_length=longest, null_threshold=threshold)
    got = answering(outputs, pieces, texts)
    for row, expected in enumerate(plainly(outputs, pieces, longest, threshold)):
        count = min(n_best, len(expected))
        assert got["SCORE"][row, :count] == pytest.approx([entry[1] for entry in expected[:count]], rel=1e-4)
        places = list(zip(got["START"][row], got["END"][row], strict=True))
        assert places[:count] == [entry[2:] for entry in expected[:count]]
        assert places[count:] == [(0, 0)] * (n_best - count)
        context = texts["CONTEXT"][row].decode()
        assert [answer.decode() for answer in got["ANSWER"][row]] == [context[start:end] for start, end in places]
    margins = answering.no_answer_margins(outputs, pieces)
    always = Postprocessor(n_best=1, max_answer_length=longest, null_threshold=None)(outputs, pieces, texts)
    forced = Postprocessor(n_best=1, max_answer_length=longest, null_threshold=0.0)(outputs, pieces, texts)
    assert ((margins > 0) == (forced["ANSWER"][:, 0] == b"")).all()
    assert (always["ANSWER"] != b"").all()


@pytest.mark.parametrize("n_best", [1, 3])
def test_white_space_is_no_answer(n_best: int) -> None:
    """A byte-level tokenizer has tokens of it alone; of all spans that of the two line ends has the highest score."""
    spans = [[-1, -1]] * QUESTION_TOKENS + [[0, 1], [1, 2], [2, 3], [3, 4], [-1, -1]]
    scores = np.array([0, 0, 0, 1, 5, 5, 2, 0], np.float32)
    pieces = {"lengths": np.array([8]), "counts": np.array([1]), "spans": np.array(spans, np.int32)}
    answering = Postprocessor(n_best=n_best, max_answer_length=3, null_threshold=None)
    texts = {"CONTEXT": np.array([b"a\n\nb"], np.object_)}
    answers = answering({"start": scores, "end": scores}, pieces, texts)
    assert list(answers["ANSWER"][0]) == [b"b", b"a", b""][:n_best]
    assert (answers["START"][0, 0], answers["END"][0, 0]) == (3, 4)


def test_a_context_of_white_space_has_no_answer() -> None:
    spans = [[-1, -1]] * QUESTION_TOKENS + [[0, 1], [1, 2], [-1, -1]]
    scores = np.array([0, 0, 0, 1, 2, 0], np.float32)
    pieces = {"lengths": np.array([6]), "counts": np.array([1]), "spans": np.array(spans, np.int32)}
    answers = Postprocessor(n_best=2, max_answer_length=8, null_threshold=None)(
        {"start": scores, "end": scores}, pieces, {"CONTEXT": np.array([b"\n\n"], np.object_)}
    )
    assert list(answers["ANSWER"][0]) == [b"", b""]
    assert answers["START"].tolist() == answers["END"].tolist() == [[0, 0]]


@pytest.mark.parametrize("n_best", [2, 100])
def test_a_context_of_one_character_takes_no_more_work_than_it_is_long(n_best: int) -> None:
    """All of its spans are one and the same answer, so that there is no second one, however many of them are tried."""
    token = "\u200d."

    def calls(tokens: int) -> int:
        """Counts the calls of functions, of Python and of C, that an answer takes."""
        ends = 1 + len(token) * np.arange(1, tokens + 1)
        spans = np.concatenate([np.full((QUESTION_TOKENS, 2), -1), np.stack([ends - 1, ends], 1)]).astype(np.int32)
        scores = np.random.default_rng(0).normal(size=(2, len(spans))).astype(np.float32)
        pieces = {"lengths": np.array([len(spans)]), "counts": np.array([1]), "spans": spans}
        texts = {"CONTEXT": np.array([("a" + token * tokens).encode()], np.object_)}
        answering = Postprocessor(n_best=n_best, max_answer_length=8, null_threshold=None)
        events: list[str] = []
        sys.setprofile(lambda frame, event, argument: events.append(event))
        try:
            answers = answering({"start": scores[0], "end": scores[1]}, pieces, texts)
        finally:
            sys.setprofile(None)
        assert (answers["ANSWER"][0] != b"").sum() == 1
        return sum(event in {"call", "c_call"} for event in events)

    assert calls(160) < 3 * calls(80)


def test_a_question_is_answered_alike_alone_and_among_others() -> None:
    generator = np.random.default_rng(0)
    lengths = np.array([9, 12, 7, 30])
    counts = np.array([1, 2, 1])
    spans = np.concatenate([np.r_[[[-1, -1]] * 3, [[i, i + 1] for i in range(n - 4)], [[-1, -1]]] for n in lengths])
    outputs = {name: generator.normal(size=lengths.sum()).astype(np.float32) for name in ("start", "end")}
    texts = {"CONTEXT": np.array([b"abcdefghijklmnopqrstuvwxyz"] * 3, np.object_)}
    answering = Postprocessor(n_best=3, max_answer_length=8, null_threshold=0.5)
    together = answering(outputs, {"lengths": lengths, "counts": counts, "spans": spans}, texts)
    alone = answering(
        {name: values[9:28] for name, values in outputs.items()},
        {"lengths": lengths[1:3], "counts": counts[1:2], "spans": spans[9:28]},
        {"CONTEXT": texts["CONTEXT"][1:2]},
    )
    for name, answer in alone.items():
        assert answer[0].tolist() == together[name][1].tolist()


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), data=st.data())
@settings(max_examples=300)
def test_no_character_is_cut(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    begins, ends = whole_characters(text)
    first, last = begins[start], ends[end]
    assert 0 <= first <= len(text)
    assert 0 <= last <= len(text)
    if first < last:
        assert not text[first].isspace()
        assert not text[last - 1].isspace()
    if last < len(text) and first < last:
        assert not unicodedata.category(text[last]).startswith("M") or text[last - 1].isspace()


@pytest.mark.parametrize(
    ("text", "cut", "whole"),
    [
        ("the cafe\u0301 is", "cafe", "cafe\u0301"),
        ("a 👩‍👩‍👧 family", "👩", "👩‍👩‍👧"),
        ("a 👍🏽 from us", "👍", "👍🏽"),
        ("a ❤️ for you", "❤", "❤️"),
        ("עם שָׁלוֹם לך", "ש", "שָׁ"),
        ("กำลัง", "กำล", "กำลั"),
        ("営業時間は九時", "九", "九"),
        ("at ten o'clock ", "ten o'clock ", "ten o'clock"),
    ],
)
def test_what_belongs_together_is_kept(text: str, cut: str, whole: str) -> None:
    start = text.index(cut)
    begins, ends = whole_characters(text)
    assert text[begins[start] : ends[start + len(cut)]] == whole


def test_settings_survive_the_folder(tmp_path: Path) -> None:
    kept = Postprocessor(n_best=3, max_answer_length=17, null_threshold=None)
    kept.save(tmp_path)
    assert vars(Postprocessor.from_folder(tmp_path)) == vars(kept)
