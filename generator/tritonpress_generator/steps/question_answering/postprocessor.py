"""Start and end scores of tokens to the best answers of each question, over all windows of its context."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
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
    the probability of an answer is the softmax over all spans of all windows, and, where there is a threshold, over
    there being none, whose score is lowered by it.
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
        Each answer is looked for among all spans once: many of them may be one and the same, as windows overlap, and as
        tokens of one character do, so that a context could be made in which the best ones are nearly all the same.
        """
        begins, ends = whole_characters(context)
        starts = begins[spans[:, 0]]
        finishes = np.append(ends[spans[:, 1]], np.zeros(table.shape[1] - 1, np.int64))
        reached = np.lib.stride_tricks.sliding_window_view(finishes, table.shape[1])
        left = np.where((starts[:, None] < reached) & np.isfinite(table), table, -np.inf)
        found: list[tuple[float, int, int]] = []
        while len(found) < self.n_best:
            first, more = divmod(int(left.argmax()), table.shape[1])
            score, start, end = float(left[first, more]), int(starts[first]), int(reached[first, more])
            if score == -np.inf:
                break
            found.append((score, start, end))
            same = np.flatnonzero(starts == start)
            left[same] = np.where(reached[same] == end, -np.inf, left[same])
        return found or [(float(table.max()), 0, 0)]


def whole_characters(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns for each place of `text`, its end included, where what is cut there begins, and where it ends, whole.

    A part from place i to j is to be `text[begins[i]:ends[j]]`: nothing that is seen as one character is cut, and there
    is no outer white space; where there is nothing else, it begins behind its end. A tokenizer may leave out combining
    marks, and end a token in front of them.
    """
    places = np.arange(len(text) + 1)
    codes = np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4"))
    solid = ~_are(str.isspace, text, codes)
    begins = ends = places
    if (inside := _are(_continues, text, codes)).any():
        inside[1:] |= codes[:-1] == ord(_JOINER)
        inside[0] = False  # nothing is before it
        whole = np.append(~inside, True)
        begins, ends = _last(places, whole), _next(places, whole)
    return _next(places, np.append(solid, True))[begins], _last(places, np.append(True, solid))[ends]


def _are(kind: Callable[[str], bool], text: str, codes: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Says of each character of `text`, whose code points are `codes`, whether it is of a kind; asks once for each."""
    table = np.zeros(codes.max(initial=0) + 1, bool)
    table[[ord(character) for character in set(text) if kind(character)]] = True
    return table[codes]


def _last(places: NDArray[np.int64], of: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns for each place the last one up to it that is `of` those, of which the first is one."""
    return np.maximum.accumulate(np.where(of, places, 0))


def _next(places: NDArray[np.int64], of: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns for each place the first one from it on that is `of` those, of which the last is one."""
    return np.minimum.accumulate(np.where(of, places, places[-1])[::-1])[::-1]


def _continues(character: str) -> bool:
    """Says whether `character` belongs to the one before, whatever that is."""
    return unicodedata.category(character) in _EXTENDING or character == _JOINER or ord(character) in _MODIFIERS
