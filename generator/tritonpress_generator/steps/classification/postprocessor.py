"""Logits to labels with their probabilities, best first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Postprocessor:
    """Makes probabilities of logits: over all labels together, or of a multi-label task for each on its own."""

    def __init__(self, *, labels: Sequence[str], multi_label: bool, temperature: float) -> None:
        """Keeps the settings.

        Args:
            labels: By the index of their logit.
            multi_label: Whether each label is a decision of its own.
            temperature: What logits are divided by, so that probabilities are calibrated.
        """
        self.labels = list(labels)
        self.multi_label = multi_label
        self.temperature = temperature
        self._names = np.array([label.encode() for label in labels], np.object_)

    @classmethod
    def from_folder(cls, folder: Path) -> Postprocessor:
        """Returns the post-processing that `labels.json` in `folder` describes."""
        return cls(**json.loads((folder / "labels.json").read_text(encoding="utf-8")))

    def save(self, folder: Path) -> None:
        """Writes `labels.json` into `folder`."""
        settings = {"labels": self.labels, "multi_label": self.multi_label, "temperature": self.temperature}
        (folder / "labels.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def __call__(
        self,
        outputs: Mapping[str, NDArray[Any]],
        pieces: Mapping[str, NDArray[Any]],
        texts: Mapping[str, NDArray[Any]],
    ) -> dict[str, NDArray[Any]]:
        """Returns `LABEL`, bytes, and `SCORE`, FP32, each `(texts, labels)`, best first, ties in the labels' order.

        Args:
            outputs: `logits`, FP32 `(texts, labels)`.
            pieces: Not read: a text is one sequence.
            texts: Not read.
        """
        probability = self.probabilities(outputs["logits"])
        # By the logits, since probabilities near 0 and 1 are rounded to the same.
        order = np.argsort(-outputs["logits"], axis=1, kind="stable")
        return {"LABEL": self._names[order], "SCORE": np.take_along_axis(probability, order, 1)}

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns FP32 `(texts, labels)` for logits of that shape."""
        scaled = logits / np.float32(self.temperature)
        if self.multi_label:
            # The form that does not overflow on either side.
            weights = np.exp(-np.abs(scaled))
            return np.asarray(np.where(scaled >= 0, 1, weights) / (1 + weights), np.float32)
        weights = np.exp(scaled - scaled.max(1, keepdims=True))
        return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)
