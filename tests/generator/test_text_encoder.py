"""The tokenizer's step: what it gives, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tritonpress_generator.steps.tokenizer.text_encoder import InvalidTextError, TextEncoder


@pytest.fixture(scope="module")
def encoder(tiny_sources: Path) -> TextEncoder:
    tokenizer = Tokenizer.from_file(str(tiny_sources / "checkpoint" / "tokenizer.json"))
    return TextEncoder(tokenizer, max_length=20, max_bytes=100, borders=[8, 16, 20])


@given(
    texts=st.lists(st.text("abcz lamp", min_size=1, max_size=40).filter(lambda t: t.strip()), min_size=1, max_size=6)
)
def test_padding_is_on_the_right_and_masked(encoder: TextEncoder, texts: list[str]) -> None:
    rows = encoder.encode([text.encode() for text in texts])
    ids, mask = encoder.pad(rows)
    assert ids.shape == mask.shape
    assert ids.shape[1] in {8, 16, 20}
    assert mask.sum(axis=1).tolist() == [len(row) for row in rows]
    for row, tokens in enumerate(rows):
        assert ids[row, : len(tokens)].tolist() == tokens
        assert np.all(ids[row, len(tokens) :] == 0)


def test_long_text_is_cut_at_the_limit(encoder: TextEncoder) -> None:
    (row,) = encoder.encode([b"lamp " * 20])
    assert len(row) == 20
    assert row[-1] == 3  # [SEP] stays


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "must have text"),
        (b" \t\n ", "must have text"),
        (b"\x00\x07\x1b", "must have text"),
        ("\u200b\ufeff".encode(), "must have text"),
        (b"lamp \xff", "must be UTF-8, got byte 0xff at 5"),
        ("\ud800".encode("utf-8", "surrogatepass"), "must be UTF-8"),
        (b"a" * 101, "must be at most 100 bytes, got 101"),
    ],
)
def test_text_that_cannot_be_served_is_named(encoder: TextEncoder, text: bytes, message: str) -> None:
    with pytest.raises(InvalidTextError, match=message) as raised:
        encoder.encode([b"lamp", text])
    assert raised.value.index == 1


@given(text=st.binary(max_size=120))
def test_any_bytes_are_encoded_or_refused(encoder: TextEncoder, text: bytes) -> None:
    try:
        (row,) = encoder.encode([text])
    except InvalidTextError:
        return
    assert 2 < len(row) <= 20
