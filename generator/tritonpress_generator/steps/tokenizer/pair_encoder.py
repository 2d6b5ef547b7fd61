"""Turns questions with their contexts into token ids, a long context into overlapping windows."""

from __future__ import annotations

from .sequences import Sequences

from .texts import Column, InvalidTextError, decode, no_text  # isort: skip  (before `tokenizers`)

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

_QUESTION, _CONTEXT = 0, 1
"""The columns, and what `tokenizers` calls the texts of a pair."""


class PairEncoder:
    """A tokenizer of questions and contexts, with the limits of a recipe.

    A context that does not fit beside its question is read in windows, each of which has the whole question.
    Source: Devlin et al. 2019, `run_squad.py` of BERT.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        doc_stride: int,
        max_question_length: int,
        max_question_bytes: int,
        max_context_bytes: int,
        segments: bool,
        too_long: str = "cut",
    ) -> None:
        """Takes the tokenizer over.

        Args:
            tokenizer: Truncates from now on.
            max_length: The most tokens of a window, question and special tokens included.
            doc_stride: How many tokens of the context neighbouring windows share.
            max_question_length: The most tokens of a question.
            max_question_bytes: The most bytes of a question.
            max_context_bytes: The most bytes of a context.
            segments: Whether the model reads segment ids.
            too_long: What happens to a question of more tokens: `cut`, or `refuse`. A context may be as long as it is.
        """
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length, stride=doc_stride, strategy="only_second")
        self._tokenizer = tokenizer
        self._questions = Tokenizer.from_str(tokenizer.to_str())
        self._questions.no_truncation()
        self._max_question_length = max_question_length
        self._max_bytes = (max_question_bytes, max_context_bytes)
        self._segments = segments
        self._cuts = too_long == "cut"

    def encode(self, questions: Column, contexts: Column) -> Sequences:
        """Returns a sequence a window, with the characters of the context that each token stands for.

        Args:
            questions: UTF-8.
            contexts: UTF-8, one for each question.

        Raises:
            InvalidTextError: A text has too many bytes, is not UTF-8, or is without anything to read.
        """
        asked = decode(questions, self._max_bytes[_QUESTION], column=_QUESTION)
        read = decode(contexts, self._max_bytes[_CONTEXT], column=_CONTEXT)
        encodings = self._tokenizer.encode_batch(
            list(zip(map(self._fitting, range(len(asked)), asked), read, strict=True))
        )
        windows: list[list[Encoding]] = [[encoding, *encoding.overflowing] for encoding in encodings]
        for index, (first, *_) in enumerate(windows):
            for column in (_QUESTION, _CONTEXT):
                if column not in first.sequence_ids:
                    raise no_text(index, column=column)
        flat = [window for of_text in windows for window in of_text]
        return Sequences(
            ids=[window.ids for window in flat],
            counts=[len(of_text) for of_text in windows],
            segments=[window.type_ids for window in flat] if self._segments else [],
            spans=[_spans(window) for window in flat],
        )

    def _fitting(self, index: int, question: str) -> str:
        """Returns the part of `question` that fits, nearly always all of it."""
        most = self._max_question_length
        # A token has a byte at least, and one may be put in front. What is not ASCII may be normalised to far more.
        if question.isascii() and len(question) < most:
            return question
        while len(offsets := self._questions.encode(question, add_special_tokens=False).offsets) > most:
            if not self._cuts:
                raise InvalidTextError(index, f"must be at most {most} tokens, got {len(offsets)}; send less")
            # A character of several tokens is left out where not all of them fit.
            question = question[: min(offsets[most - 1][1], len(question) - 1)]
        return question


def _spans(window: Encoding) -> NDArray[np.int32]:
    """Returns INT32 `(tokens, 2)`: the characters of the context, -1 for what is not of it."""
    spans = np.full((len(window), 2), -1, np.int32)
    of_context = np.array(window.sequence_ids, object) == _CONTEXT
    spans[of_context] = np.array(window.offsets, np.int32)[of_context]
    return spans
