"""A cropped tokenizer leaves counted texts as they were, and no text without tokens."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_sources import contexts, wordpiece_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tritonpress_generator.errors import InputError
from tritonpress_generator.vocabulary import cropped, with_parts

CORPUS = [*contexts(), "Zürich, naïve façade; 1,024 lamps!", "日本 lamps"]
KINDS = ("wordpiece", "bpe", "byte_bpe", "unigram")


@cache
def tokenizer(kind: str) -> Tokenizer:
    """Returns a tokenizer that was trained on the corpus, with the special tokens of its kin."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=160, special_tokens=special))
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="[UNK]")
        made.train_from_iterator(CORPUS, trainer)
    else:
        made = Tokenizer(models.BPE(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.ByteLevel() if kind == "byte_bpe" else pre_tokenizers.Whitespace()
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "byte_bpe" else []
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
        made.train_from_iterator(CORPUS, trainer)
    ids = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    if kind == "byte_bpe":
        made.post_processor = processors.Sequence([processors.ByteLevel(), processors.BertProcessing(ids[1], ids[0])])
    else:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
        )
    return made


def used(of: Tokenizer, texts: list[str]) -> set[int]:
    return {number for text in texts for number in of.encode(text, add_special_tokens=False).ids}


@pytest.mark.parametrize("kind", KINDS)
def test_counted_texts_become_the_same_tokens(kind: str) -> None:
    whole = tokenizer(kind)
    texts = CORPUS[:5]
    small, old = cropped(whole, with_parts(whole, used(whole, texts)))
    assert len(old) == small.get_vocab_size() < whole.get_vocab_size()
    assert old == sorted(old)
    for text in (*texts, texts[0] + " " + texts[1]):
        before, after = whole.encode(text, "a lamp"), small.encode(text, "a lamp")
        if text in texts:
            assert whole.encode(text).tokens == small.encode(text).tokens
        assert [old[number] for number in after.ids] == [whole.token_to_id(token) for token in after.tokens]
        assert before.tokens[0] == after.tokens[0] == "[CLS]"
        assert before.tokens[-1] == after.tokens[-1] == "[SEP]"


@pytest.mark.parametrize("kind", KINDS)
@given(
    words=st.lists(st.sampled_from(sorted({w for text in CORPUS for w in text.split()})), max_size=5), data=st.data()
)
def test_no_text_loses_its_tokens(kind: str, words: list[str], data: st.DataObject) -> None:
    whole = tokenizer(kind)
    kept = data.draw(st.lists(st.sampled_from(CORPUS), max_size=2))
    small, old = cropped(whole, with_parts(whole, used(whole, kept)))
    text = "".join(data.draw(st.permutations(words))) + " ".join(words)
    before, after = whole.encode(text), small.encode(text)
    unknown = [token for token in after.tokens if token == "[UNK]"]
    assert len(unknown) <= len([token for token in before.tokens if token == "[UNK]"])
    assert "".join(t.removeprefix("##") for t in after.tokens) == "".join(t.removeprefix("##") for t in before.tokens)
    assert all(number < len(old) for number in after.ids)


def test_all_tokens_are_the_same_tokenizer() -> None:
    for kind in KINDS:
        whole = tokenizer(kind)
        small, old = cropped(whole, range(whole.get_vocab_size()))
        assert old == list(range(whole.get_vocab_size()))
        assert small.get_vocab() == whole.get_vocab()
        assert [small.encode(text).ids for text in CORPUS] == [whole.encode(text).ids for text in CORPUS]


def test_characters_that_cannot_stand_alone_keep_the_tokens_they_stand_in() -> None:
    whole = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##a": 2, "b": 3, "xa": 4, "##xb": 5, "ab": 6}))
    small, old = cropped(whole, [])
    # "x" has no token of its own, nor has "b" behind another; "ab" has both its characters, "b" not in that place.
    assert old == [0, 1, 2, 3, 4, 5, 6]
    assert small.encode("xa").tokens == ["xa"]


def test_other_kinds_are_refused() -> None:
    with pytest.raises(InputError, match="must be WordPiece, BPE or Unigram to be cropped, is WordLevel"):
        cropped(Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]")), [0])


def test_special_tokens_stay(tmp_path: Path) -> None:
    wordpiece_tokenizer(tmp_path / "tokenizer.json")
    whole = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    small, _ = cropped(whole, [])
    for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
        assert small.token_to_id(name) is not None
    assert small.encode("a lamp").tokens[0] == "[CLS]"


AROUND = ("[CLS]", "[SEP]")


def after(whole: Tokenizer, kind: str) -> Tokenizer:
    """Returns the tokenizer with a post-processor of the kind."""
    first, last = ((name, whole.token_to_id(name)) for name in AROUND)
    bert = processors.BertProcessing(last, first)
    whole.post_processor = {
        "bert": bert,
        "roberta": processors.RobertaProcessing(last, first),
        "template": processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[first, last]),
        "sequence": processors.Sequence([processors.ByteLevel(trim_offsets=False), bert]),
    }[kind]
    return whole


@pytest.mark.parametrize("kind", ["bert", "roberta", "template", "sequence"])
def test_tokens_around_a_text_stay_where_they_are_tokens_like_others(kind: str) -> None:
    """Of some files they are not among the added tokens, and their characters may all stand alone."""
    characters = sorted(set("".join(AROUND) + "lamp"))
    tokens = ["[UNK]", *characters, *(f"##{character}" for character in characters), *AROUND, "lamp"]
    model = models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]")
    whole = after(Tokenizer(model), kind)
    assert not whole.get_added_tokens_decoder()
    small, old = cropped(whole, [])
    assert len(old) == len(tokens) - 1
    assert small.encode("lamp").tokens == ["[CLS]", "l", "##a", "##m", "##p", "[SEP]"]
    assert [old[number] for number in small.encode("lamp").ids][::5] == [whole.token_to_id(name) for name in AROUND]
