"""What is asked: texts of mixed lengths, as a service meets them, and requests of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tritonpress_generator.answering import Texts
from tritonpress_generator.workload import Workload

MEAN_TOKENS = 40
LONGEST_TOKENS = 256
_SIGMA = 0.7
_SHORTEST_TOKENS = 4
_TEXTS = 512

Request = dict[str, NDArray[np.object_]]
"""The public inputs of a request by name, UTF-8 bytes `(texts,)`."""


def with_mixed_lengths(workload: Workload, path: Path) -> Workload:
    """Returns `workload` with texts of mixed lengths for samples, which it writes to `path`, one a line.

    A task of several public inputs keeps its own: texts that belong together cannot be cut out of others.
    """
    names = workload.recipe.task.module.INPUTS
    if len(names) > 1:
        return workload
    texts = mixed_texts(workload.tokenizer, workload.data.calibration[names[0]], _TEXTS)
    path.write_text("\n".join(texts), encoding="utf-8")
    serve = workload.recipe.serve.model_copy(update={"samples": str(path)})
    return replace(workload, recipe=replace(workload.recipe, serve=serve))


def mixed_texts(tokenizer: Tokenizer, source: Sequence[str], count: int, *, seed: int = 0) -> list[str]:
    """Returns `count` texts cut out of `source`, their tokens log-normal with mean 40, between 4 and 256."""
    generator = np.random.default_rng(seed)
    lengths = generator.lognormal(np.log(MEAN_TOKENS) - _SIGMA**2 / 2, _SIGMA, count).round().astype(int)
    words = " ".join(source).split()
    uncut = _uncut(tokenizer)
    texts = []
    for length in np.clip(lengths, _SHORTEST_TOKENS, LONGEST_TOKENS):
        start = int(generator.integers(0, max(1, len(words) - LONGEST_TOKENS)))
        text = " ".join(words[start : start + LONGEST_TOKENS])
        ends = _token_ends(uncut, text)
        texts.append(text[: ends[min(int(length) - 2, len(ends)) - 1]])
    return texts


def requests(texts: Texts, size: int = 1) -> list[Request]:
    """Returns `texts` as requests of `size` texts, of which the last is filled up with the first."""
    columns = {name: np.array([text.encode() for text in column], np.object_) for name, column in texts.items()}
    count = len(next(iter(columns.values())))
    return [
        {name: column.take(range(start, start + size), mode="wrap") for name, column in columns.items()}
        for start in range(0, count, size)
    ]


def _uncut(tokenizer: Tokenizer) -> Tokenizer:
    """Returns a copy that does not truncate."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    return copy


def _token_ends(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the character behind each token of `text`."""
    return [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets]
