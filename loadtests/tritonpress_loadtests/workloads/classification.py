"""Classification: a text a request, all labels back."""

from __future__ import annotations

from tritonpress_client import Classifier, Options

from tritonpress_loadtests.query_files import jsonl, tsv

READERS = {".tsv": tsv("text"), ".jsonl": jsonl("text")}
INPUTS = {"TEXT": "text"}
OUTPUTS = ("LABEL", "SCORE")


def connect(url: str, *, model: str, timeout_s: float, options: Options) -> Classifier:
    """Returns a client of the model; nothing is sent yet."""
    return Classifier(url, model=model, timeout_s=timeout_s, options=options)


def check(client: Classifier) -> None:
    """Asks the server whether the model classifies; the client remembers the answer."""
    client.limits()
