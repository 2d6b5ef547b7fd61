"""`tritonpress-query ask`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tritonpress_client.errors import InvalidInputError
from tritonpress_client.question_answering import Answer, QuestionAnswering
from tritonpress_client.request_files import read_entries, read_text

HELP = "the passage of a text that answers a question"
_SENTENCE_BREAK = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")
_MOST_CHARACTERS = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument("question", nargs="*", metavar="QUESTION", help="what is asked")
    parser.add_argument("--context", metavar="TEXT", help="where the answer is looked for")
    parser.add_argument("--context-file", type=Path, metavar="FILE", help="the same, from a file")
    parser.add_argument("--file", type=Path, help='requests, one {"question": …, "context": …} a line')
    parser.add_argument("-n", type=int, default=1, help="the most answers to a question (%(default)s)")
    parser.add_argument("--model", default="question_answering", help="name of the ensemble (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 after printing the answers to each question, with the sentence that holds each."""
    pairs = _pairs(arguments)
    with QuestionAnswering(arguments.url, model=arguments.model, timeout_s=arguments.timeout_s) as answerer:
        answers = answerer.answers_many(pairs, arguments.n)
    for (question, context), found in zip(pairs, answers, strict=True):
        if arguments.json:
            entry = {"question": question, "answers": [asdict(answer) for answer in found]}
            print(json.dumps(entry, ensure_ascii=False))
        else:
            print("\n".join(_lines(question, context, found)))
    return 0


def _pairs(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Returns the questions with their contexts."""
    contexts = [arguments.context, arguments.context_file]
    if arguments.file is not None:
        if arguments.question or contexts != [None, None]:
            raise InvalidInputError("--file has its own questions and contexts; give it alone, or leave it out")
        entries = read_entries(arguments.file, "question", "context")
        return [(entry["question"], entry["context"]) for entry in entries]
    if not arguments.question or contexts.count(None) != 1:
        raise InvalidInputError("give QUESTION with either --context TEXT or --context-file FILE, or give --file FILE")
    context = arguments.context if arguments.context is not None else read_text(arguments.context_file)
    return [(question, context) for question in arguments.question]


def _lines(question: str, context: str, answers: list[Answer]) -> Iterator[str]:
    """Yields the question and its answers, two lines each: rank, score, answer; the sentence around it."""
    yield " / ".join(question.splitlines())
    rank_width = len(str(len(answers)))
    for rank, answer in enumerate(answers, start=1):
        text = " ".join(answer.text.split()) if answer.found else "(no answer in the context)"
        yield f"  {rank:>{rank_width}}  {answer.score:8.4f}  {text}"
        if answer.found:
            yield f"  {'':{rank_width}}  {'':8}  {_sentence(context, answer)}"
    if not answers:
        yield "  (no answer in the context)"


def _sentence(context: str, answer: Answer) -> str:
    """Returns the sentence or the line that holds the answer, which is marked; a long one is cut on either side."""
    breaks = list(_SENTENCE_BREAK.finditer(context))
    start = max((found.end() for found in breaks if found.end() <= answer.start), default=0)
    end = min((found.start() for found in breaks if found.start() >= answer.end), default=len(context))
    before, after = context[start : answer.start], context[answer.end : end]
    if len(before) > _MOST_CHARACTERS:
        before = f"…{before[-_MOST_CHARACTERS:]}"
    if len(after) > _MOST_CHARACTERS:
        after = f"{after[:_MOST_CHARACTERS]}…"
    return re.sub(r"\s+", " ", f"{before}»{answer.text}«{after}").strip()
