"""Labels from the ensemble that a `classification` recipe builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritonpress_client.model_client import Contract, ModelClient, checked_list, encoded


@dataclass(frozen=True)
class Classification:
    """A label and its probability; the scores of a text's labels sum to 1, unless the model is multi-label."""

    label: str
    score: float


class Classifier(ModelClient):
    """Asks a classification model; arguments and errors as `ModelClient`."""

    _contract = Contract("classification", inputs=("TEXT",), outputs=("LABEL", "SCORE"), width="labels")

    def classify(self, text: str, n: int | None = None) -> list[Classification]:
        """Returns the labels of the text, best first.

        Args:
            text: What is to be labelled.
            n: How many labels; all of them by default.

        Raises:
            InvalidInputError: The text is empty or cannot be encoded, `n` is out of range, or the server refuses.
            TritonpressError: See `tritonpress_client.errors`.
        """
        return self._classify([(encoded(text, "text"),)], n)[0]

    def classify_many(self, texts: Sequence[str], n: int | None = None) -> list[list[Classification]]:
        """Returns the labels of each text, in the texts' order.

        The texts travel in batches of `max_batch_size`, each a request with a deadline of its own. One text that the
        server refuses fails the call; the message says where it stands.

        Args:
            texts: At least one text, each as for `classify`.
            n: As for `classify`.

        Raises:
            InvalidInputError: A text or `n` is at fault; nothing is sent if that can be seen here.
            TritonpressError: See `tritonpress_client.errors`.
        """
        listed = enumerate(checked_list(texts, "texts", of="str"))
        return self._classify([(encoded(text, f"texts[{index}]"),) for index, text in listed], n)

    def _classify(self, texts: list[tuple[bytes, ...]], n: int | None) -> list[list[Classification]]:
        rows = self._infer(texts, self._checked_count("n", n), "texts")
        return [
            [Classification(label.decode(), score) for label, score in zip(labels, scores, strict=True)]
            for labels, scores in rows
        ]
