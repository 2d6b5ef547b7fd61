"""`tritonpress-query classify`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tritonpress_client.classifier import Classification, Classifier
from tritonpress_client.connecting import connected
from tritonpress_client.file_run import Asked, answer_all, check_arguments
from tritonpress_client.request_files import requests

HELP = "the labels of a text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument("text", nargs="*", metavar="TEXT", help="what is to be labelled")
    parser.add_argument("--file", type=Path, help='texts, one a line; *.jsonl or *.csv with "text"')
    parser.add_argument("--out", type=Path, help="labels of --file, *.jsonl or *.csv; what is there is not asked again")
    parser.add_argument("-n", type=int, help="how many labels (all)")
    parser.add_argument("--model", default="classification", help="name of the ensemble (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status after printing the labels of each text."""
    check_arguments(arguments)
    asked = requests(arguments.text, arguments.file, key="text")
    with connected(Classifier, arguments) as classifier:
        how = Asked(
            keys=("text",),
            name="labels",
            columns=("label", "score"),
            ask=lambda chunk, progress: classifier.classify_many(
                [request.texts["text"] for request in chunk], arguments.n, progress=progress
            ),
            value=asdict,
            lines=lambda request, labels: _lines(request.texts["text"], labels),
        )
        return answer_all(how, asked, arguments, lambda: classifier.limits().max_batch_size)


def _lines(text: str, labels: list[Classification]) -> Iterator[str]:
    """Yields the text and its labels, a line each: rank, score, label."""
    yield " / ".join(text.splitlines())
    rank_width = len(str(len(labels)))
    for rank, label in enumerate(labels, start=1):
        yield f"  {rank:>{rank_width}}  {label.score:8.4f}  {label.label}"
