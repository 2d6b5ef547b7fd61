"""Texts of mixed lengths, as a service meets them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

MEAN_TOKENS = 40
LONGEST_TOKENS = 256
_SIGMA = 0.7
_SHORTEST_TOKENS = 4


def mixed_texts(tokenizer: Tokenizer, source: Sequence[str], count: int, *, seed: int = 0) -> list[str]:
    """Returns `count` texts cut out of `source`, their tokens log-normal with mean 40, between 4 and 256."""
    generator = np.random.default_rng(seed)
    lengths = generator.lognormal(np.log(MEAN_TOKENS) - _SIGMA**2 / 2, _SIGMA, count).round().astype(int)
    words = " ".join(source).split()
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    texts = []
    for length in np.clip(lengths, _SHORTEST_TOKENS, LONGEST_TOKENS):
        start = int(generator.integers(0, max(1, len(words) - LONGEST_TOKENS)))
        text = " ".join(words[start : start + LONGEST_TOKENS])
        ends = [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets]
        texts.append(text[: ends[min(int(length) - 2, len(ends)) - 1]])
    return texts
