"""`tritonpress-query ask`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tritonpress_client.connecting import connected
from tritonpress_client.errors import InvalidInputError
from tritonpress_client.file_run import Asked, answer_all, check_arguments
from tritonpress_client.question_answering import Answer, QuestionAnswering
from tritonpress_client.request_files import Request, read_requests, read_text

HELP = "the passage of a text that answers a question"
_SENTENCE_BREAK = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")
_MOST_CHARACTERS = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument("question", nargs="*", metavar="QUESTION", help="what is asked")
    parser.add_argument("--context", metavar="TEXT", help="where the answer is looked for")
    parser.add_argument("--context-file", type=Path, metavar="FILE", help="the same, from a file")
    parser.add_argument("--file", type=Path, help='requests, JSONL or *.csv with "question" and "context"')
    parser.add_argument(
        "--out", type=Path, help="answers to --file, *.jsonl or *.csv; what is there is not asked again"
    )
    parser.add_argument("-n", type=int, default=1, help="the most answers to a question (%(default)s)")
    parser.add_argument("--model", default="question_answering", help="name of the ensemble (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status after printing the answers to each question, with the sentence that holds each."""
    check_arguments(arguments)
    asked = _requests(arguments)
    with connected(QuestionAnswering, arguments) as answering:
        how = Asked(
            keys=("question", "context"),
            name="answers",
            columns=("text", "score", "start", "end"),
            ask=lambda requests, progress: answering.answers_many(
                [(request.texts["question"], request.texts["context"]) for request in requests],
                arguments.n,
                progress=progress,
            ),
            value=asdict,
            lines=lambda request, found: _lines(request.texts["question"], request.texts["context"], found),
        )
        return answer_all(how, asked, arguments, lambda: answering.limits().max_batch_size)


def _requests(arguments: argparse.Namespace) -> list[Request]:
    """Returns the questions with their contexts."""
    contexts = [arguments.context, arguments.context_file]
    if arguments.file is not None:
        if arguments.question or contexts != [None, None]:
            raise InvalidInputError("--file has its own questions and contexts; give it alone, or leave it out")
        return read_requests(arguments.file, "question", "context")
    if not arguments.question or contexts.count(None) != 1:
        raise InvalidInputError("give QUESTION with either --context TEXT or --context-file FILE, or give --file FILE")
    context = arguments.context if arguments.context is not None else read_text(arguments.context_file)
    return [
        Request(number, {"question": question, "context": context})
        for number, question in enumerate(arguments.question, start=1)
    ]


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
