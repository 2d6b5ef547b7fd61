"""Asks what a file holds, and writes the answers in chunks: what is there stays when the command ends early."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tritonpress_client.answer_files import AnswerFile
from tritonpress_client.errors import InvalidInputError, PartialFailureError, TritonpressError
from tritonpress_client.many import Progress
from tritonpress_client.progress import ProgressBar
from tritonpress_client.request_files import Request

# Requests in flight are all awaited at a chunk's end, which a chunk of so many batches makes cheap.
_BATCHES_A_CHUNK = 256
_PLACE = re.compile(r"^`\w+\[\d+\](\.\w+)?`:? ")


@dataclass(frozen=True)
class Asked:
    """What a command does with requests."""

    keys: tuple[str, ...]
    """What a request's texts are called."""
    name: str
    """What an answer's values are called together, in JSON."""
    columns: tuple[str, ...]
    """What a value's fields are called."""
    ask: Callable[[Sequence[Request], Progress | None], list[Any]]
    """Answers many requests."""
    value: Callable[[Any], dict[str, Any]]
    """The fields of one value."""
    lines: Callable[[Request, Any], Iterator[str]]
    """An answer for people."""


def answer_all(
    asked: Asked, requests: Sequence[Request], arguments: argparse.Namespace, batch_size: Callable[[], int]
) -> int:
    """Returns the exit status after printing the answers or writing them to --out."""
    if arguments.out is not None:
        return _write(asked, requests, arguments, batch_size)
    answers, failures = _outcomes(asked, requests, None)
    for index, request in enumerate(requests):
        if index in failures:
            print(f"tritonpress-query: line {request.line}: {failures[index]}", file=sys.stderr)
        elif arguments.json:
            print(json.dumps(_entry(asked, request, answers[index]), ensure_ascii=False))
        else:
            print("\n".join(asked.lines(request, answers[index])))
    return _status(failures.values())


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuses --out without --file."""
    if arguments.out is not None and arguments.file is None:
        raise InvalidInputError("--out is for the answers to --file FILE; give both")


def _write(
    asked: Asked, requests: Sequence[Request], arguments: argparse.Namespace, batch_size: Callable[[], int]
) -> int:
    with AnswerFile(arguments.out, asked.keys, asked.columns) as file:
        rest = file.rest(requests)
        before = len(requests) - len(rest)
        if before:
            print(f"tritonpress-query: {before} of {len(requests)} are answered in {file.path}", file=sys.stderr)
        failed: list[TritonpressError] = []
        bar = ProgressBar(len(requests), before)
        size = _BATCHES_A_CHUNK * batch_size() if rest else 1
        for start in range(0, len(rest), size):
            chunk, past = rest[start : start + size], before + start
            show = partial(_show, bar, past, file)
            answers, failures = _outcomes(asked, chunk, show)
            for index, request in enumerate(chunk):
                if index in failures:
                    file.write_failure(request, failures[index])
                    failed.append(failures[index])
                else:
                    file.write(request, asked.name, [asked.value(value) for value in answers[index]])
            file.flush()
    if file.failed:
        print(
            f"tritonpress-query: {file.failed} of {len(requests)} failed, see {file.failures_path}; the same command"
            " asks them again",
            file=sys.stderr,
        )
    return _status(failed)


def _show(bar: ProgressBar, past: int, file: AnswerFile, done: int, total: int) -> None:
    bar.show(past + done, file.failed)


def _status(failures: Iterable[TritonpressError]) -> int:
    """Returns 0 where nothing failed, 2 where the input is to blame for all that did, else 1."""
    kinds = {isinstance(error, InvalidInputError) for error in failures}
    return 0 if not kinds else 2 if kinds == {True} else 1


def _outcomes(
    asked: Asked, requests: Sequence[Request], progress: Progress | None
) -> tuple[Sequence[Any], dict[int, TritonpressError]]:
    """Returns the answers, and the errors by their index."""
    try:
        return asked.ask(requests, progress), {}
    except PartialFailureError as exc:
        for error in exc.failures.values():
            # A line's number says where it is.
            error.args = (_PLACE.sub("", str(error)),)
        return exc.results, exc.failures


def _entry(asked: Asked, request: Request, values: Sequence[Any]) -> dict[str, Any]:
    return {**request.texts, asked.name: [asked.value(value) for value in values]}
