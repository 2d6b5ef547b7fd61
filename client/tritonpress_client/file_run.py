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
from tritonpress_client.model_client import encoded
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
    outcomes = _outcomes(asked, requests, None)
    for request, outcome in zip(requests, outcomes, strict=True):
        if isinstance(outcome, TritonpressError):
            print(f"tritonpress-query: line {request.line}: {outcome}", file=sys.stderr)
        elif arguments.json:
            print(json.dumps(_entry(asked, request, outcome), ensure_ascii=False))
        else:
            print("\n".join(asked.lines(request, outcome)))
    return _status(outcome for outcome in outcomes if isinstance(outcome, TritonpressError))


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
            chunk = rest[start : start + size]
            show = partial(_show, bar, before + start + len(chunk), file)
            for request, outcome in zip(chunk, _outcomes(asked, chunk, show), strict=True):
                if isinstance(outcome, TritonpressError):
                    file.write_failure(request, outcome)
                    failed.append(outcome)
                else:
                    file.write(request, asked.name, [asked.value(value) for value in outcome])
            file.flush()
    if file.failed:
        print(
            f"tritonpress-query: {file.failed} of {len(requests)} failed, see {file.failures_path}; the same command"
            " asks them again",
            file=sys.stderr,
        )
    return _status(failed)


def _show(bar: ProgressBar, end: int, file: AnswerFile, done: int, total: int) -> None:
    # What is not sent is done as well.
    bar.show(end - total + done, file.failed)


def _status(failures: Iterable[TritonpressError]) -> int:
    """Returns 0 where nothing failed, 2 where the input is to blame for all that did, else 1."""
    kinds = {isinstance(error, InvalidInputError) for error in failures}
    return 0 if not kinds else 2 if kinds == {True} else 1


def _outcomes(asked: Asked, requests: Sequence[Request], progress: Progress | None) -> list[Any]:
    """Returns for each request its answers, or its error; what no server could answer is not sent."""
    outcomes: list[Any] = [_fault(request) for request in requests]
    sound = [index for index, fault in enumerate(outcomes) if fault is None]
    for index, outcome in zip(sound, _sent(asked, [requests[index] for index in sound], progress), strict=True):
        outcomes[index] = outcome
    return outcomes


def _sent(asked: Asked, requests: Sequence[Request], progress: Progress | None) -> list[Any]:
    if not requests:
        if progress is not None:
            progress(0, 0)
        return []
    try:
        return asked.ask(requests, progress)
    except PartialFailureError as exc:
        for error in exc.failures.values():
            # A line's number says where it is.
            error.args = (_PLACE.sub("", str(error)),)
        return [exc.failures.get(index, result) for index, result in enumerate(exc.results)]
    except InvalidInputError as exc:
        # The refusal of one that is asked alone comes as it is; where none was sent the arguments are at fault.
        if len(requests) > 1 or not exc.attempts:
            raise
        return [exc]


def _fault(request: Request) -> InvalidInputError | None:
    """Returns what is wrong with a text that no server could answer."""
    try:
        for key, text in request.texts.items():
            encoded(text, key)
    except InvalidInputError as exc:
        return exc
    return None


def _entry(asked: Asked, request: Request, values: Sequence[Any]) -> dict[str, Any]:
    return {**request.texts, asked.name: [asked.value(value) for value in values]}
