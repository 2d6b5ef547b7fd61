"""`tritonpress-query classify`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tritonpress_client.classifier import Classification, Classifier
from tritonpress_client.request_files import texts

HELP = "the labels of a text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own arguments."""
    parser.add_argument("text", nargs="*", metavar="TEXT", help="what is to be labelled")
    parser.add_argument("--file", type=Path, help='texts, one a line; *.jsonl: one {"text": …} a line')
    parser.add_argument("-n", type=int, help="how many labels (all)")
    parser.add_argument("--model", default="classification", help="name of the ensemble (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 after printing the labels of each text."""
    asked = texts(arguments.text, arguments.file, key="text")
    with Classifier(arguments.url, model=arguments.model, timeout_s=arguments.timeout_s) as classifier:
        answers = classifier.classify_many(asked, arguments.n)
    for text, labels in zip(asked, answers, strict=True):
        if arguments.json:
            entry = {"text": text, "labels": [asdict(label) for label in labels]}
            print(json.dumps(entry, ensure_ascii=False))
        else:
            print("\n".join(_lines(text, labels)))
    return 0


def _lines(text: str, labels: list[Classification]) -> Iterator[str]:
    """Yields the text and its labels, a line each: rank, score, label."""
    yield " / ".join(text.splitlines())
    rank_width = len(str(len(labels)))
    for rank, label in enumerate(labels, start=1):
        yield f"  {rank:>{rank_width}}  {label.score:8.4f}  {label.label}"
