"""What is asked: texts of mixed lengths as a service meets them, and texts of so many tokens; and requests of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
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
TEXTS = 512

Request = dict[str, NDArray[np.object_]]
"""The public inputs of a request by name, UTF-8 bytes `(texts,)`."""


def with_mixed_lengths(workload: Workload, path: Path) -> Workload:
    """Returns `workload` with texts of mixed lengths for what is asked, which it writes to `path`, one a line.

    A task of several public inputs keeps its own: texts that belong together cannot be cut out of others.
    """
    names = workload.recipe.task.module.INPUTS
    if len(names) > 1:
        return workload
    texts = mixed_texts(workload.tokenizer, workload.data.calibration[names[0]], TEXTS)
    path.write_text("\n".join(texts), encoding="utf-8")
    return replace(workload, recipe=replace(workload.recipe, asked=str(path)))


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


def filled_texts(workload: Workload, tokens: int, count: int) -> Texts:
    """Returns `count` texts for each public input that make `tokens` tokens, those of all windows together.

    The last input's texts are as long as that takes; beside them are the shortest of the samples' others.
    """
    *others, last = workload.recipe.task.module.INPUTS
    samples = workload.data.samples
    beside = sorted(
        (tuple(samples[name][i] for name in others) for i in range(len(samples[last]))),
        key=lambda row: sum(map(len, row)),
    )
    # A context is there as often as it has questions.
    words = " ".join(dict.fromkeys(workload.data.calibration[last])).split()
    uncut = _uncut(workload.tokenizer)
    rows = []
    for number in range(count):
        row = beside[number % len(beside)]
        start = number * len(words) // count
        # A word has a token at least.
        text = " ".join(islice(cycle(words), start, start + tokens))
        ends = _token_ends(uncut, text)
        rows.append((*row, text[: ends[bisect_left(ends, tokens, key=partial(_made, workload, row, text))]]))
    return dict(zip((*others, last), (list(column) for column in zip(*rows, strict=True)), strict=True))


def requests(texts: Texts, size: int = 1) -> list[Request]:
    """Returns `texts` as requests of `size` texts, of which the last is filled up with the first."""
    columns = {name: np.array([text.encode() for text in column], np.object_) for name, column in texts.items()}
    count = len(next(iter(columns.values())))
    return [
        {name: column.take(range(start, start + size), mode="wrap") for name, column in columns.items()}
        for start in range(0, count, size)
    ]


def _made(workload: Workload, beside: Sequence[str], text: str, end: int) -> int:
    """Returns how many tokens `text` makes up to the character `end`, with what is `beside` it."""
    columns = ([part.encode()] for part in (*beside, text[:end]))
    return sum(map(len, workload.encoder.encode(*columns).ids))


def _uncut(tokenizer: Tokenizer) -> Tokenizer:
    """Returns a copy that does not truncate."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    return copy


def _token_ends(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the character behind each token of `text`."""
    return [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets]
