"""Reads questions with their gold answers in the JSON of SQuAD (v1.1 and v2.0), and scores answers as SQuAD does.

Source: Rajpurkar et al. 2016 and 2018; the metrics are those of the official `evaluate-v1.1.py` and `evaluate-v2.0.py`.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonpress_generator.errors import InputError
from tritonpress_generator.records import read_text

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Answer:
    """A gold answer."""

    text: str
    start: int
    """Its first character in the context."""


@dataclass(frozen=True)
class Question:
    """A question, what it is asked of, and its gold answers."""

    question_id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    """None where the context has no answer."""
    title: str
    """Of the article that the context is of."""


def load(path: Path, *, labelled: bool = True) -> list[Question]:
    """Returns the questions in the JSON file `path`, gzipped or not; `labelled`: each must have its answers.

    Raises:
        InputError: Unreadable, mis-encoded, not of SQuAD's form, or an answer that is not where it should be; says
            which.
    """
    questions: list[Question] = []
    seen: set[str] = set()
    for title, context, entry in _entries(path):
        name = f"{path}: question {entry.get('id')!r}"
        question_id, text = entry.get("id"), entry.get("question")
        if not isinstance(question_id, str) or question_id in seen:
            raise InputError(f"{name}: 'id' must be a string that no other question has; correct it")
        seen.add(question_id)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{name}: 'question' must be text, got {text!r}; write one")
        if not isinstance(context, str) or not context.strip():
            raise InputError(f"{name}: 'context' must be text, got {str(context)[:40]!r}; write one")
        impossible = entry.get("is_impossible", not labelled and "answers" not in entry)
        answers = () if impossible else tuple(_answers(name, context, entry.get("answers")))
        if not answers and not impossible:
            raise InputError(f"{name}: must have an answer, or 'is_impossible': true; add one of them")
        questions.append(Question(question_id, text, context, answers, title))
    if not questions:
        raise InputError(f"{path}: must have at least one question, got none")
    return questions


def _entries(path: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yields the title, the context and the question's entry of each question."""
    text = read_text(path)
    try:
        articles = json.loads(text)["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for entry in paragraph["qas"]:
                    yield str(article.get("title", "")), paragraph["context"], dict(entry)
    except (json.JSONDecodeError, RecursionError) as exc:
        raise InputError(f"{path}: is not JSON ({exc}); give a file of SQuAD's form") from exc
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise InputError(
            f"{path}: must have SQuAD's form, data[].paragraphs[].qas[] ({type(exc).__name__}: {exc}); correct it"
        ) from exc


def _answers(name: str, context: str, entries: Any) -> Iterator[Answer]:
    for entry in entries if isinstance(entries, list) else []:
        text = entry.get("text") if isinstance(entry, dict) else None
        start = entry.get("answer_start") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text or not isinstance(start, int):
            raise InputError(f"{name}: an answer must have 'text' and 'answer_start', got {entry!r}; correct it")
        found = context[start : start + len(text)] if start >= 0 else ""
        if found != text:
            raise InputError(
                f"{name}: the context must have {text!r} at character {start}, has {found!r}; correct answer_start"
            )
        yield Answer(text, start)


def normalize_answer(text: str) -> str:
    """Returns `text` in lower case, without punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """Returns 1 if both are the same after normalisation, else 0."""
    return float(normalize_answer(answer) == normalize_answer(gold))


def f1(answer: str, gold: str) -> float:
    """Returns the harmonic mean of precision and recall over the words of the normalised answers."""
    got, expected = normalize_answer(answer).split(), normalize_answer(gold).split()
    if not got or not expected:
        # As in evaluate-v2.0: nothing answered is right only where there is nothing to answer.
        return float(got == expected)
    same = sum((Counter(got) & Counter(expected)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(got), same / len(expected)
    return 2 * precision * recall / (precision + recall)


@cache
def scores(question: Question, answer: str) -> tuple[float, float]:
    """Returns exact match and F1 of `answer`, each the best over the gold answers."""
    # As in evaluate-v2.0: gold answers of which the normalisation leaves nothing do not count.
    golds = [gold.text for gold in question.answers if normalize_answer(gold.text)] or [""]
    return max(exact_match(answer, gold) for gold in golds), max(f1(answer, gold) for gold in golds)


def evaluate(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Returns `f1` and `exact_match` of each question, in percent as SQuAD gives them, `(questions,)`."""
    pairs = [scores(question, answer) for question, answer in zip(questions, answers, strict=True)]
    matches, overlaps = 100 * np.array(pairs).T
    return {"f1": overlaps, "exact_match": matches}
