"""Takes tokens out of a tokenizer such that every text still becomes tokens, and the texts that were counted the same.

Kept beside what is used: special tokens, and what any text can be spelt with. A text whose tokens are all kept becomes
the same tokens again, since each algorithm's choice among fewer tokens is the one it made among all:

- WordPiece takes the longest token at each place; those of single characters are kept.
- BPE merges by rank; the merges that made a kept token are kept, with all that they merge.
- Unigram takes the likeliest division (Viterbi); pieces of single characters and bytes are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

from tritonpress_generator.errors import InputError

_AROUND = ("sep", "cls")
"""Under which names a post-processor of the kind of BERT or RoBERTa has the tokens that it puts around texts."""


def cropped(tokenizer: Tokenizer, used: Iterable[int]) -> tuple[Tokenizer, list[int]]:
    """Returns a tokenizer of fewer tokens, and the ids that its tokens had before, ascending.

    Args:
        tokenizer: WordPiece, BPE or Unigram.
        used: The ids of the tokens to keep.

    Raises:
        InputError: The tokenizer is of another kind.
    """
    data = json.loads(tokenizer.to_str())
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    kept = set(used) | _special(data, tokens) | _spelling(data["model"], tokens)
    old = sorted(kept)
    new = {before: after for after, before in enumerate(old)}
    _rewrite(data, tokens, new)
    return Tokenizer.from_str(json.dumps(data)), old


def _special(data: Mapping[str, Any], tokens: Mapping[str, int]) -> set[int]:
    """Returns the ids that have a meaning of their own."""
    ids = {int(token["id"]) for token in data["added_tokens"]}
    unknown = data["model"].get("unk_token")
    if unknown in tokens:
        ids.add(tokens[unknown])
    if data["model"].get("unk_id") is not None:
        ids.add(int(data["model"]["unk_id"]))
    # Not in every file are the tokens that are put around a text among those that were added to the vocabulary.
    return ids | _around(data.get("post_processor"))


def _around(processor: Mapping[str, Any] | None) -> set[int]:
    """Returns the ids of the tokens that a post-processor puts around texts."""
    if processor is None:
        return set()
    ids = {processor[name][1] for name in _AROUND if name in processor}
    for inner in processor.get("processors", []):
        ids |= _around(inner)
    for token in (processor.get("special_tokens") or {}).values():
        ids.update(token["ids"])
    return ids


def _spelling(model: Mapping[str, Any], tokens: Mapping[str, int]) -> set[int]:
    """Returns the ids of what any text can be spelt with.

    Raises:
        InputError: The algorithm is not known here.
    """
    kind = model["type"]
    if kind == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        pieces = {token: token.removeprefix(prefix) for token in tokens}
        single = {token for token, piece in pieces.items() if len(piece) == 1}
        # A character that cannot stand alone in both places needs all that it stands in.
        lone = {pieces[token] for token in single if prefix + pieces[token] in single and pieces[token] in single}
        return {
            number
            for token, number in tokens.items()
            if token in single or any(character not in lone for character in pieces[token])
        }
    if kind == "BPE":
        made = {"".join(pair) for pair in map(_pair, model["merges"])}
        return {number for token, number in tokens.items() if token not in made}
    if kind == "Unigram":
        return {
            number
            for token, number in tokens.items()
            if len(token) == 1 or (len(token) == 6 and token.startswith("<0x") and token.endswith(">"))
        }
    raise InputError(
        f"passes.crop: vocabulary: must be WordPiece, BPE or Unigram to be cropped, is {kind}; leave vocabulary out"
    )


def _rewrite(data: dict[str, Any], tokens: Mapping[str, int], new: Mapping[int, int]) -> None:
    """Gives the tokens that are kept their new ids, wherever the tokenizer's file has them."""
    model = data["model"]
    if model["type"] == "Unigram":
        before = model["vocab"]
        model["vocab"] = [before[number] for number in sorted(new) if number < len(before)]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[number] for token, number in model["vocab"].items() if number in new}
    if model["type"] == "BPE":
        model["merges"] = [merge for merge in model["merges"] if all(part in model["vocab"] for part in _made(merge))]
    for token in data["added_tokens"]:
        token["id"] = new[token["id"]]
    _rewrite_processor(data.get("post_processor"), new)


def _rewrite_processor(processor: dict[str, Any] | None, new: Mapping[int, int]) -> None:
    if processor is None:
        return
    for inner in processor.get("processors", []):
        _rewrite_processor(inner, new)
    for name in _AROUND:
        if name in processor:
            processor[name][1] = new[processor[name][1]]
    for token in (processor.get("special_tokens") or {}).values():
        token["ids"] = [new[number] for number in token["ids"]]


def with_parts(tokenizer: Tokenizer, used: Iterable[int]) -> set[int]:
    """Returns `used` and, of BPE, all that is merged on the way to them."""
    model = json.loads(tokenizer.to_str())["model"]
    found = set(used)
    if model["type"] != "BPE":
        return found
    vocabulary: dict[str, int] = model["vocab"]
    parts: dict[str, list[tuple[str, str]]] = {}
    for pair in map(_pair, model["merges"]):
        parts.setdefault("".join(pair), []).append(pair)
    names = {number: token for token, number in vocabulary.items()}
    waiting = [names[number] for number in found if number in names]
    while waiting:
        for part in (part for pair in parts.get(waiting.pop(), []) for part in pair):
            if vocabulary[part] not in found:
                found.add(vocabulary[part])
                waiting.append(part)
    return found


def _pair(merge: str | list[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _made(merge: str | list[str]) -> tuple[str, str, str]:
    first, second = _pair(merge)
    return first, second, first + second
