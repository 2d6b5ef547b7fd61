"""Questions and contexts to windows: what they hold, and what is refused."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_sources import WORDS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tritonpress_generator.steps.tokenizer.pair_encoder import PairEncoder
from tritonpress_generator.steps.tokenizer.texts import InvalidTextError, encode_requests

MAX_LENGTH, STRIDE, MAX_QUESTION = 32, 8, 10
CLS, SEP = 2, 3
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(tiny_sources: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_sources / "checkpoint" / "tokenizer.json"))


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> PairEncoder:
    return make(tokenizer)


@pytest.fixture(scope="module")
def expanding() -> Tokenizer:
    """One of SentencePiece's kind, whose normalisation makes four words of U+FDFA."""
    words = unicodedata.normalize("NFKC", "\ufdfa").split()
    pieces = ["<unk>", "<pad>", "<s>", "</s>", "▁", "▁a", *(f"▁{word}" for word in words), *words]
    tokenizer = Tokenizer(
        models.Unigram([(piece, -float(len(pieces) - i)) for i, piece in enumerate(pieces)], unk_id=0)
    )
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = [("<s>", CLS), ("</s>", SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=special
    )
    return tokenizer


def make(tokenizer: Tokenizer, **settings: object) -> PairEncoder:
    limits: dict[str, object] = {
        "max_length": MAX_LENGTH,
        "doc_stride": STRIDE,
        "max_question_length": MAX_QUESTION,
        "max_question_bytes": 100,
        "max_context_bytes": 4000,
        "segments": True,
    }
    return PairEncoder(Tokenizer.from_str(tokenizer.to_str()), **limits | settings)  # type: ignore[arg-type]


@given(
    question=st.lists(st.sampled_from(WORDS), min_size=1, max_size=MAX_QUESTION),
    context=st.lists(st.sampled_from(WORDS), min_size=1, max_size=200),
)
def test_windows_hold_the_whole_context_and_share_what_is_said(
    encoder: PairEncoder, question: list[str], context: list[str]
) -> None:
    text = " ".join(context)
    sequences = encoder.encode([" ".join(question).encode()], [text.encode()])
    seen: list[str] = []
    for number, (ids, segments, spans) in enumerate(
        zip(sequences.ids, sequences.segments, sequences.spans, strict=True)
    ):
        assert len(ids) == len(segments) == len(spans) <= MAX_LENGTH
        assert ids[0] == CLS
        assert ids[1 + len(question)] == ids[-1] == SEP
        assert segments == [0] * (2 + len(question)) + [1] * (len(ids) - 2 - len(question))
        assert np.all((spans[:, 0] >= 0) == (np.array(segments) & (np.array(ids) != SEP)))
        words = [text[start:end] for start, end in spans if start >= 0]
        # Neighbouring windows share what the recipe says.
        new = words if number == 0 else words[STRIDE:]
        assert number == 0 or words[:STRIDE] == seen[-STRIDE:]
        seen += new
    assert seen == context
    assert sequences.counts == [len(sequences.ids)]


@given(question=UNICODE, context=UNICODE)
def test_any_text_is_encoded_or_refused(encoder: PairEncoder, question: str, context: str) -> None:
    try:
        sequences = encoder.encode([question.encode()], [context.encode()])
    except InvalidTextError as error:
        assert error.column in {0, 1}
        return
    for spans in sequences.spans:
        of_context = spans[spans[:, 0] >= 0]
        assert len(of_context)
        assert np.all(of_context[:, 0] <= of_context[:, 1])
        assert of_context.max() <= len(context)


@pytest.mark.parametrize(
    ("question", "context", "column", "message"),
    [
        (b"", b"lamp", 0, "must have text"),
        (b"lamp", b" \n\t", 1, "must have text"),
        (b"\x00\x07", b"lamp", 0, "must have text"),
        (b"lamp", "\u200b\u00ad\u200b".encode(), 1, "must have text"),
        (b"\xff", b"lamp", 0, "must be UTF-8, got byte 0xff at 0"),
        (b"lamp", b"lamp \xc3", 1, "must be UTF-8, got byte 0xc3 at 5"),
        (b"a" * 101, b"lamp", 0, "must be at most 100 bytes, got 101"),
        (b"lamp", b"a" * 4001, 1, "must be at most 4000 bytes, got 4001"),
    ],
)
def test_what_cannot_be_asked_is_named(
    encoder: PairEncoder, question: bytes, context: bytes, column: int, message: str
) -> None:
    with pytest.raises(InvalidTextError, match=message) as raised:
        encoder.encode([b"lamp", question], [b"lamp", context])
    assert (raised.value.column, raised.value.index) == (column, 1)


def test_a_long_question_is_cut_or_refused(tokenizer: Tokenizer, encoder: PairEncoder) -> None:
    long = [b"lamp " * 12], [b"a red chair"]
    (ids,) = encoder.encode(*long).ids
    assert ids.index(SEP) == 1 + MAX_QUESTION
    with pytest.raises(InvalidTextError, match="must be at most 10 tokens, got 12; send less"):
        make(tokenizer, too_long="refuse").encode(*long)


def test_a_question_is_as_long_as_what_it_is_normalised_to(expanding: Tokenizer) -> None:
    """Of fewer bytes than it may have tokens; a context had no room beside it, at which the tokenizer panics."""
    few = ["\ufdfa".encode() * 6], [b"a " * 60]
    assert len(few[0][0]) == 18
    sequences = make(expanding, max_question_length=18).encode(*few)
    alone = expanding.encode("\ufdfa" * 4, add_special_tokens=False).ids
    assert len(alone) == 16
    assert all(ids[1 : ids.index(SEP)] == alone for ids in sequences.ids)
    with pytest.raises(InvalidTextError, match="must be at most 18 tokens, got 24; send less"):
        make(expanding, max_question_length=18, too_long="refuse").encode(*few)


def test_requests_of_pairs_are_refused_one_by_one(encoder: PairEncoder) -> None:
    good = ([b"lamp", b"chair"], [b"red lamp " * 30, b"chair"])
    requests = [good, ([b"lamp"], [b"\xff"]), ([b" "], [b"lamp"]), good]
    sequences, refusals = encode_requests(encoder.encode, requests)
    assert [refusal and refusal.column for refusal in refusals] == [None, 1, 0, None]
    assert sequences.ids == encoder.encode(*good).ids * 2
    last = sequences.of_texts(2, 4)
    assert last.ids == encoder.encode(*good).ids
    assert last.counts == encoder.encode(*good).counts
    assert len(last.spans) == len(last.segments) == len(last.ids)
