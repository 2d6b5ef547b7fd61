"""Start and end scores of tokens to the best answers of each question, over all windows of its context."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_JOINER = "\u200d"
_EXTENDING = {"Mn", "Mc", "Me"}
"""Categories of characters that belong to the one before: combining marks, variation selectors among them."""
_MODIFIERS = range(0x1F3FB, 0x1F400)
"""Skin tones of emoji."""


class Postprocessor:
    """Finds the spans of the context that are the most probable answers.

    A span's score is the sum of its first token's start score and its last token's end score; that no span is the
    answer has the sum of the scores of a window's first token, the lowest of all windows. Windows are scored together:
    the probability of an answer is the softmax over all spans of all windows, and over there being none.
    Source: Devlin et al. 2019, section 4.3; Clark and Gardner 2018, "Simple and Effective Multi-Paragraph Reading
    Comprehension", for the normalisation over all windows.
    """

    def __init__(self, *, n_best: int, max_answer_length: int, null_threshold: float | None) -> None:
        """Keeps the settings.

        Args:
            n_best: How many answers each question gets.
            max_answer_length: The most tokens of an answer.
            null_threshold: How far the score of no answer must be above that of the best span for "no answer"; None: a
                span is always answered.
        """
        self.n_best = n_best
        self.max_answer_length = max_answer_length
        self.null_threshold = null_threshold

    @classmethod
    def from_folder(cls, folder: Path) -> Postprocessor:
        """Returns the post-processing that `answers.json` in `folder` describes."""
        return cls(**json.loads((folder / "answers.json").read_text(encoding="utf-8")))

    def save(self, folder: Path) -> None:
        """Writes `answers.json` into `folder`."""
        text = json.dumps(vars(self), indent=2) + "\n"
        (folder / "answers.json").write_text(text, encoding="utf-8")

    def __call__(
        self,
        outputs: Mapping[str, NDArray[Any]],
        pieces: Mapping[str, NDArray[Any]],
        texts: Mapping[str, NDArray[Any]],
    ) -> dict[str, NDArray[Any]]:
        """Returns `ANSWER`, bytes, `SCORE`, FP32, `START` and `END`, INT32, each `(questions, n_best)`, best first.

        Where there are fewer answers, and for no answer, ANSWER is empty and START and END are 0.

        Args:
            outputs: `start` and `end`, FP32 `(tokens,)`, of the tokens of all windows behind one another.
            pieces: `lengths` of the windows, `counts` of the questions' windows, and `spans`, INT32 `(tokens, 2)`: the
                characters of the context that a token stands for, -1 where it is not of the context.
            texts: `CONTEXT`, UTF-8 bytes `(questions,)`.
        """
        table, null = self._scores(outputs, pieces)
        windows_end = np.cumsum(pieces["counts"])
        tokens_end = np.cumsum(pieces["lengths"])[windows_end - 1]
        shape = (len(windows_end), self.n_best)
        answers: dict[str, NDArray[Any]] = {
            "ANSWER": np.full(shape, b"", np.object_),
            "SCORE": np.zeros(shape, np.float32),
            "START": np.zeros(shape, np.int32),
            "END": np.zeros(shape, np.int32),
        }
        for row, context in enumerate(texts["CONTEXT"]):
            first = tokens_end[row - 1] if row else 0
            part = slice(first, tokens_end[row])
            self._answer(row, table[part], null[row], pieces["spans"][part], context.decode("utf-8"), answers)
        return answers

    def no_answer_margins(
        self, outputs: Mapping[str, NDArray[Any]], pieces: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.float32]:
        """Returns how far no answer is above the best span, FP32 `(questions,)`: what the threshold is held to."""
        table, null = self._scores(outputs, pieces)
        of_token = table.max(1)
        tokens = np.add.reduceat(pieces["lengths"], np.cumsum(pieces["counts"]) - pieces["counts"])
        best: NDArray[np.float32] = np.maximum.reduceat(of_token, np.cumsum(tokens) - tokens)
        return null - best

    def _scores(
        self, outputs: Mapping[str, NDArray[Any]], pieces: Mapping[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the scores of all spans, and of no answer.

        The first is FP32 `(tokens, max_answer_length)`: of the span of so many tokens more that begins at a token, -inf
        where there is none; the second FP32 `(questions,)`.
        """
        lengths, counts = pieces["lengths"], pieces["counts"]
        ends = np.cumsum(lengths)
        first_tokens = ends - lengths
        of_context = pieces["spans"][:, 0] >= 0
        start = np.where(of_context, outputs["start"], -np.inf).astype(np.float32)
        end = np.full(len(start) + self.max_answer_length - 1, -np.inf, np.float32)
        end[: len(start)] = np.where(of_context, outputs["end"], -np.inf)
        table = start[:, None] + np.lib.stride_tricks.sliding_window_view(end, self.max_answer_length)
        # A span stays in its window.
        left = np.repeat(ends, lengths) - np.arange(len(start))
        table[np.arange(self.max_answer_length) >= left[:, None]] = -np.inf
        null = outputs["start"][first_tokens] + outputs["end"][first_tokens]
        return table, np.minimum.reduceat(null, np.cumsum(counts) - counts)

    def _answer(
        self,
        row: int,
        table: NDArray[np.float32],
        null: np.float32,
        spans: NDArray[np.int32],
        context: str,
        answers: dict[str, NDArray[Any]],
    ) -> None:
        """Fills in the answers of one question."""
        found = self._best(table, spans, context)
        highest = found[0][0]
        total = float(np.exp(table - highest).sum())
        if self.null_threshold is not None:
            # That the threshold is to be overcome is counted in the score, so that the order is that of the scores.
            none = float(null) - self.null_threshold
            total += np.exp(none - highest)
            if none > highest:
                found.insert(0, (none, 0, 0))
        for column, (score, start, end) in enumerate(found[: self.n_best]):
            answers["ANSWER"][row, column] = context[start:end].encode()
            answers["SCORE"][row, column] = np.exp(score - highest) / total
            answers["START"][row, column] = start
            answers["END"][row, column] = end

    def _best(self, table: NDArray[np.float32], spans: NDArray[np.int32], context: str) -> list[tuple[float, int, int]]:
        """Returns score, first and last character of the best spans, best first, none of them twice.

        White space alone, which some tokenizers make tokens of, answers nothing; where all is, no answer is the best.
        """
        flat = table.ravel()
        count = 1 if self.n_best == 1 else 4 * self.n_best
        while True:
            count = min(count, flat.size)
            if count == 1:
                top = np.array([flat.argmax()])
            else:
                top = np.argpartition(-flat, count - 1)[:count]
                top = top[np.lexsort((top, -flat[top]))]
            found: dict[tuple[int, int], float] = {}
            for index in top[np.isfinite(flat[top])].tolist():
                first, more = divmod(index, table.shape[1])
                start, end = whole_characters(context, int(spans[first, 0]), int(spans[first + more, 1]))
                if start < end:
                    found.setdefault((start, end), float(flat[index]))
            # Windows overlap, so that a span may be in two of them: then there must be more to choose from.
            if len(found) >= self.n_best or count == flat.size:
                return [(score, *place) for place, score in found.items()] or [(float(flat.max()), 0, 0)]
            count *= 4


def whole_characters(text: str, start: int, end: int) -> tuple[int, int]:
    """Returns `start` and `end` moved so that nothing that is seen as one character is cut, without outer white space.

    A tokenizer may leave out combining marks, and end a token in front of them.
    """
    while start > 0 and _continues(text, start):
        start -= 1
    while end < len(text) and _continues(text, end):
        end += 1
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _continues(text: str, index: int) -> bool:
    """Says whether the character at `index` belongs to the one before."""
    character = text[index]
    return (
        unicodedata.category(character) in _EXTENDING
        or character == _JOINER
        or text[index - 1] == _JOINER
        or ord(character) in _MODIFIERS
    )
