"""Turns texts into padded token ids, or says which text cannot be served and why."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A request's few texts are tokenised in less time than it takes to wake other threads, which the engine needs anyway.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Tokenizer  # (reads the environment when it is imported)


class InvalidTextError(ValueError):
    """A text that cannot be served; `index` is its place among the texts given."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class TextEncoder:
    """A tokenizer with the limits of a recipe."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        max_bytes: int,
        too_long: str = "cut",
        max_sequences: int = 32,
        borders: Sequence[int] = (),
        packed: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        """Takes the tokenizer over.

        Args:
            tokenizer: Truncates from now on to `max_length`, or never.
            max_length: The most tokens of a text, special tokens included.
            max_bytes: The most bytes of a text.
            too_long: What happens to a text of more tokens: `cut`, or `refuse`.
            max_sequences: The most texts of a padded execution.
            borders: Lengths to the next of which a batch is padded, ascending; none: to its longest.
            packed: Whether the engine takes the texts' tokens behind one another, without padding.
            max_tokens: The most packed tokens of one request or execution.
        """
        tokenizer.no_padding()
        if too_long == "cut":
            tokenizer.enable_truncation(max_length)
        else:
            tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._max_sequences = max_sequences
        self._borders = borders
        self._max_bytes = max_bytes
        self._packs = packed
        self._max_tokens = max_tokens
        self._special = tokenizer.num_special_tokens_to_add(is_pair=False)
        token = next((t for t in ("[PAD]", "<pad>") if tokenizer.token_to_id(t) is not None), None)
        self._pad_id = 0 if token is None else tokenizer.token_to_id(token)

    @classmethod
    def from_folder(cls, folder: Path) -> TextEncoder:
        """Returns the encoder that `tokenizer.json` and `settings.json` in `folder` describe."""
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), **settings)

    def encode(self, texts: Sequence[bytes]) -> list[list[int]]:
        """Returns each text's token ids, special tokens included.

        Args:
            texts: UTF-8.

        Raises:
            InvalidTextError: A text is too long, not UTF-8, or without anything to read.
        """
        decoded = [self._decode(index, text) for index, text in enumerate(texts)]
        encodings = self._tokenizer.encode_batch_fast(decoded)
        ids: list[list[int]] = [encoding.ids for encoding in encodings]
        for index, row in enumerate(ids):
            if len(row) <= self._special or not decoded[index].strip():
                raise InvalidTextError(index, "must have text, got only white space or control characters; send some")
            if len(row) > self._max_length:
                raise InvalidTextError(index, f"must be at most {self._max_length} tokens, got {len(row)}; send less")
        return ids

    def encode_requests(
        self, requests: Sequence[Sequence[bytes]]
    ) -> tuple[list[list[int]], list[InvalidTextError | None]]:
        """Returns the token ids of all texts of the requests that can be served, and for each request what refuses it.

        All texts are tokenised at once; a bad one refuses its own request alone.
        """
        try:
            return self.encode([text for texts in requests for text in texts]), [None] * len(requests)
        except InvalidTextError:
            pass
        ids: list[list[int]] = []
        refusals: list[InvalidTextError | None] = []
        for texts in requests:
            try:
                ids += self.encode(texts)
                refusals.append(None)
            except InvalidTextError as error:
                refusals.append(error)
        return ids, refusals

    def executions(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], dict[str, NDArray[Any]]]]:
        """Yields executions of the engine that answer all of `ids` between them: indices of `ids`, and the inputs.

        Packed, an execution has as many sequences as its tokens allow. Padded, those of one border; without borders,
        those of one length.
        """
        parts: dict[int, list[list[int]]] = {}
        tokens = 0
        for index, row in enumerate(ids):
            if not self._packs:
                same = parts.setdefault(self._width(len(row)), [[]])
                full = len(same[-1]) == self._max_sequences
            else:
                same = parts.setdefault(0, [[]])
                tokens += len(row)
                full = self._max_tokens is not None and tokens > self._max_tokens
            if full and same[-1]:
                same.append([])
                tokens = len(row)
            same[-1].append(index)
        for members in (part for same in parts.values() for part in same):
            rows = [ids[index] for index in members]
            if self._packs:
                yield members, {name: tensor[0] for name, tensor in self._packed(rows).items()}
            else:
                yield members, self._padded(rows)

    def tensors(self, ids: Sequence[Sequence[int]]) -> dict[str, NDArray[Any]]:
        """Returns the engine's inputs for the sequences of one request, with Triton's batch dimension first.

        Raises:
            InvalidTextError: They have too many tokens together.
        """
        if not self._packs:
            return self._padded(ids)
        total = 0
        for index, row in enumerate(ids):
            total += len(row)
            if self._max_tokens is not None and total > self._max_tokens:
                raise InvalidTextError(
                    index, f"must keep the request within {self._max_tokens} tokens, makes it {total}; send fewer texts"
                )
        return self._packed(ids)

    def _padded(self, ids: Sequence[Sequence[int]]) -> dict[str, NDArray[Any]]:
        input_ids, attention_mask = self.pad(ids)
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _packed(self, ids: Sequence[Sequence[int]]) -> dict[str, NDArray[Any]]:
        return {
            "input_ids": np.array([[token for row in ids for token in row]], np.int64),
            "lengths": np.array([[len(row) for row in ids]], np.int64),
        }

    def _width(self, length: int) -> int:
        return next((border for border in self._borders if border >= length), length)

    def pad(self, ids: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns `input_ids` and `attention_mask`, INT64 `(len(ids), seq)`, padded on the right."""
        width = self._width(max(map(len, ids)))
        input_ids = np.full((len(ids), width), self._pad_id, np.int64)
        attention_mask = np.zeros((len(ids), width), np.int64)
        for row, tokens in enumerate(ids):
            input_ids[row, : len(tokens)] = tokens
            attention_mask[row, : len(tokens)] = 1
        return input_ids, attention_mask

    def _decode(self, index: int, text: bytes) -> str:
        if len(text) > self._max_bytes:
            raise InvalidTextError(index, f"must be at most {self._max_bytes} bytes, got {len(text)}; send less")
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise InvalidTextError(
                index, f"must be UTF-8, got byte 0x{text[exc.start]:02x} at {exc.start}; encode it as UTF-8"
            ) from exc
