"""The tokenizer's step: what it gives, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tritonpress_generator.steps.tokenizer.sequences import Batching, Sequences
from tritonpress_generator.steps.tokenizer.text_encoder import TextEncoder
from tritonpress_generator.steps.tokenizer.texts import InvalidTextError, encode_requests


@pytest.fixture(scope="module")
def encoder(tiny_sources: Path) -> TextEncoder:
    tokenizer = Tokenizer.from_file(str(tiny_sources / "checkpoint" / "tokenizer.json"))
    return TextEncoder(tokenizer, max_length=20, max_bytes=100)


@given(
    texts=st.lists(st.text("abcz lamp", min_size=1, max_size=40).filter(lambda t: t.strip()), min_size=1, max_size=6)
)
def test_padding_is_on_the_right_and_masked(encoder: TextEncoder, texts: list[str]) -> None:
    sequences = encoder.encode([text.encode() for text in texts])
    feed = Batching(pad_id=0, borders=[8, 16, 20]).pad(sequences)
    ids, mask = feed["input_ids"], feed["attention_mask"]
    assert ids.shape == mask.shape
    assert ids.shape[1] in {8, 16, 20}
    assert mask.sum(axis=1).tolist() == [len(row) for row in sequences.ids]
    for row, tokens in enumerate(sequences.ids):
        assert ids[row, : len(tokens)].tolist() == tokens
        assert np.all(ids[row, len(tokens) :] == 0)


def test_long_text_is_cut_at_the_limit(encoder: TextEncoder) -> None:
    (row,) = encoder.encode([b"lamp " * 20]).ids
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
        (row,) = encoder.encode([text]).ids
    except InvalidTextError:
        return
    assert 2 < len(row) <= 20


def test_long_text_is_refused_where_the_recipe_says_so(tiny_sources: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_sources / "checkpoint" / "tokenizer.json"))
    encoder = TextEncoder(tokenizer, max_length=20, max_bytes=200, too_long="refuse")
    assert len(encoder.encode([b"lamp " * 18]).ids[0]) == 20
    with pytest.raises(InvalidTextError, match="must be at most 20 tokens, got 21; send less") as raised:
        encoder.encode([b"lamp", b"lamp " * 19])
    assert raised.value.index == 1


@given(requests=st.lists(st.lists(st.sampled_from([b"lamp", b"red lamp", b"", b"\xff"]), min_size=1), min_size=1))
def test_bad_text_refuses_its_own_request_alone(encoder: TextEncoder, requests: list[list[bytes]]) -> None:
    sequences, refusals = encode_requests(encoder.encode, [(texts,) for texts in requests])
    good = [text for texts, refusal in zip(requests, refusals, strict=True) if refusal is None for text in texts]
    assert sequences.ids == (encoder.encode(good).ids if good else [])
    assert sequences.counts == [1] * len(good)
    for texts, refusal in zip(requests, refusals, strict=True):
        bad = [index for index, text in enumerate(texts) if text in {b"", b"\xff"}]
        assert (refusal is None) == (not bad)
        if refusal is not None:
            assert refusal.index in bad


FORMS: list[dict[str, object]] = [{}, {"borders": [8, 16, 20]}, {"packed": True, "max_tokens": 40}]


@pytest.mark.parametrize("form", FORMS)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_executions_hold_every_sequence_once_and_keep_their_limits(form: dict[str, object], lengths: list[int]) -> None:
    batching = Batching(pad_id=0, max_sequences=4, **form)  # type: ignore[arg-type]
    rows = [[100 + index] * length for index, length in enumerate(lengths)]
    seen: list[int] = []
    for members, feed in batching.executions(Sequences(rows, [1] * len(rows))):
        seen += members
        if "lengths" in feed:
            assert feed["input_ids"].size == feed["lengths"].sum() <= 40
            assert feed["input_ids"].tolist() == [token for index in members for token in rows[index]]
            assert feed["lengths"].size == len(members)
        else:
            assert len(members) <= 4
            assert feed["attention_mask"].sum(axis=1).tolist() == [lengths[index] for index in members]
            assert feed["input_ids"][:, 0].tolist() == [100 + index for index in members]
            if not form:
                assert np.all(feed["attention_mask"] == 1)
    assert sorted(seen) == list(range(len(lengths)))
