"""Turns texts into token ids, or says which text cannot be served and why."""

from __future__ import annotations

from .sequences import Sequences

from .texts import Column, InvalidTextError, decode, no_text  # isort: skip  (before `tokenizers`)

from tokenizers import Tokenizer


class TextEncoder:
    """A tokenizer of single texts, with the limits of a recipe."""

    def __init__(self, tokenizer: Tokenizer, *, max_length: int, max_bytes: int, too_long: str = "cut") -> None:
        """Takes the tokenizer over.

        Args:
            tokenizer: Truncates from now on to `max_length`, or never.
            max_length: The most tokens of a text, special tokens included.
            max_bytes: The most bytes of a text.
            too_long: What happens to a text of more tokens: `cut`, or `refuse`.
        """
        tokenizer.no_padding()
        if too_long == "cut":
            tokenizer.enable_truncation(max_length)
        else:
            tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._max_bytes = max_bytes
        self._special = tokenizer.num_special_tokens_to_add(is_pair=False)

    def encode(self, texts: Column) -> Sequences:
        """Returns a sequence a text.

        Args:
            texts: UTF-8.

        Raises:
            InvalidTextError: A text is too long, not UTF-8, or without anything to read.
        """
        encodings = self._tokenizer.encode_batch_fast(decode(texts, self._max_bytes))
        ids: list[list[int]] = [encoding.ids for encoding in encodings]
        for index, row in enumerate(ids):
            if len(row) <= self._special:
                raise no_text(index)
            if len(row) > self._max_length:
                raise InvalidTextError(index, f"must be at most {self._max_length} tokens, got {len(row)}; send less")
        return Sequences(ids, [1] * len(ids))
