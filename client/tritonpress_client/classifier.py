"""Labels from the ensemble that a `classification` recipe builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritonpress_client.many import Progress
from tritonpress_client.model_client import Contract, ModelClient, Row, checked_list, encoded
from tritonpress_client.modes import Asynchronous, Blocking, both


@dataclass(frozen=True)
class Classification:
    """A label and its probability; the scores of a text's labels sum to 1, unless the model is multi-label."""

    label: str
    score: float


class _Classifier(ModelClient):
    _contract = Contract("classification", inputs=("TEXT",), outputs=("LABEL", "SCORE"), width="labels")

    @both
    async def classify(self, text: str, n: int | None = None) -> list[Classification]:
        """Returns the labels of the text, best first.

        Args:
            text: What is to be labelled.
            n: How many labels; all of them by default.

        Raises:
            InvalidInputError: The text is empty or cannot be encoded, `n` is out of range, or the server refuses.
            TritonpressError: See `tritonpress_client.errors`.
        """
        return _labels(await self._one((encoded(text, "text"),), n, "n"))

    @both
    async def classify_many(
        self, texts: Sequence[str], n: int | None = None, *, progress: Progress | None = None
    ) -> list[list[Classification]]:
        """Returns the labels of each text, in the texts' order.

        The texts travel in batches that the model takes, each a request with a deadline of its own.

        Args:
            texts: At least one text, each as for `classify`.
            n: As for `classify`.
            progress: Told how many texts are done, and of how many.

        Raises:
            InvalidInputError: A text or `n` is at fault; nothing is sent if that can be seen here.
            PartialFailureError: Some texts have failed; it has the others' labels.
            TritonpressError: See `tritonpress_client.errors`.
        """
        listed = enumerate(checked_list(texts, "texts", of="str"))
        elements = [(encoded(text, f"texts[{index}]"),) for index, text in listed]
        return await self._many(elements, n, ("texts", "n"), _labels, progress)


class Classifier(_Classifier, Blocking):
    """Asks a classification model; arguments and errors as `ModelClient`."""


class AsyncClassifier(_Classifier, Asynchronous):
    """The same, awaited."""


def _labels(row: Row) -> list[Classification]:
    return [Classification(label.decode(), score) for label, score in zip(*row, strict=True)]
