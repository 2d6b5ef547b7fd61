"""Question answering: a question with its context a request, all `n_best` answers back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonpress_client import Options, QuestionAnswering

from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.query_files import Query, jsonl


def squad(path: Path, text: str) -> list[Query]:
    """Returns all questions of a SQuAD file (v1.1 or v2.0) with their contexts; its answers are not read."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ScenarioError(f"{path} is not JSON ({exc}); a *.json file must be in SQuAD's format") from exc
    queries = []
    for at_article, article in _objects(path, content, "data", ""):
        for at_paragraph, paragraph in _objects(path, article, "paragraphs", at_article):
            context = _text(path, paragraph, "context", at_paragraph)
            for at_question, entry in _objects(path, paragraph, "qas", at_paragraph):
                queries.append({"question": _text(path, entry, "question", at_question), "context": context})
    return queries


READERS = {".json": squad, ".jsonl": jsonl("question", "context")}
INPUTS = {"QUESTION": "question", "CONTEXT": "context"}
OUTPUTS = ("ANSWER", "SCORE", "START", "END")


def connect(url: str, *, model: str, timeout_s: float, options: Options) -> QuestionAnswering:
    """Returns a client of the model; nothing is sent yet."""
    return QuestionAnswering(url, model=model, timeout_s=timeout_s, options=options)


def check(client: QuestionAnswering) -> None:
    """Asks the server whether the model answers questions; the client remembers the answer."""
    client.limits()


def _objects(path: Path, owner: Any, key: str, at: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects listed under `key`, each with where it lies in the file."""
    listed = owner.get(key) if isinstance(owner, dict) else None
    if not isinstance(listed, list):
        raise ScenarioError(f"{path}: `{at}{key}` must be a list, as in SQuAD's format")
    for index, entry in enumerate(listed):
        if not isinstance(entry, dict):
            raise ScenarioError(f"{path}: `{at}{key}.{index}` must be an object, as in SQuAD's format")
        yield f"{at}{key}.{index}.", entry


def _text(path: Path, owner: dict[str, Any], key: str, at: str) -> str:
    value = owner.get(key)
    if not isinstance(value, str):
        raise ScenarioError(f"{path}: `{at}{key}` must be text, as in SQuAD's format")
    return value
