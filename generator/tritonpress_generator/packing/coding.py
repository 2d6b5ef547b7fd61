"""Codes a block: byte planes of its words, each a Zstandard frame or as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from backports import zstd

Bytes = npt.NDArray[np.uint8]

_WINDOW_LOG = 18
BLOCK_BYTES = 1 << _WINDOW_LOG
"""What a block holds at most: it stays in a core's cache from decoding to writing; larger ones are not coded better."""
WORDS: dict[int, type[np.unsignedinteger[Any]]] = {2: np.uint16, 4: np.uint32}
"""Sizes of words whose sign bit is moved; a block of single bytes is its own plane."""

_Parameter = zstd.CompressionParameter
# Next to no match of 7 bytes is found in a table of 64 entries, so that what is left is Zstandard's Huffman coding: of
# exponents, whose few values repeat by chance, matches are longer than the codes that they take the place of.
_HUFFMAN: dict[int, int] = {
    _Parameter.strategy: zstd.Strategy.fast,
    _Parameter.min_match: 7,
    _Parameter.hash_log: 6,
    _Parameter.chain_log: 6,
    _Parameter.search_log: 1,
    _Parameter.window_log: _WINDOW_LOG,
}
_WINDOW: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
_MATCHING_GAIN = 0.98
"""Matches are decoded at half the speed of Huffman's codes: they must save 2 %."""
TENSOR_LEVEL = 3
OTHER_LEVEL = 12


class CorruptError(ValueError):
    """A stream is not what a plane of this length is coded as."""


def planes(block: bytes, word_bytes: int) -> list[Bytes]:
    """Returns the byte planes of a block, lowest first.

    Args:
        block: Little-endian words; bytes behind the last whole word go to the end of the first plane.
        word_bytes: 1, 2 or 4.
    """
    if word_bytes == 1:
        return [np.frombuffer(block, np.uint8)]
    word = WORDS[word_bytes]
    words = np.frombuffer(block, word, count=len(block) // word_bytes)
    turned = (words << word(1)) | (words >> word(8 * word_bytes - 1))
    split = [(turned >> word(8 * plane)).astype(np.uint8) for plane in range(word_bytes)]
    split[0] = np.concatenate([split[0], np.frombuffer(block, np.uint8, offset=words.nbytes)])
    return split


def joined(split: Sequence[Bytes]) -> Bytes:
    """Returns the block whose byte planes these are: the inverse of `planes`."""
    word_bytes = len(split)
    if word_bytes == 1:
        return split[0]
    word = WORDS[word_bytes]
    count = len(split[-1])
    block = np.empty(sum(map(len, split)), np.uint8)
    words = block[: count * word_bytes].view(word)
    words[:] = split[-1]
    for plane in reversed(split[:-1]):
        words <<= word(8)
        words |= plane[:count]
    top = words << word(8 * word_bytes - 1)
    words >>= word(1)
    words |= top
    block[count * word_bytes :] = split[0][count:]
    return block


def encode(block: bytes, word_bytes: int, *, level: int) -> list[bytes]:
    """Returns the block's streams: one for each plane of its words or, where that is smaller, one of all its bytes.

    Args:
        block: At most `BLOCK_BYTES`.
        word_bytes: Of the block's words, where they are numbers; else 1.
        level: Zstandard's, where matches are looked for.
    """
    if len(block) < word_bytes:
        word_bytes = 1  # all planes but the first would be empty
    split = [_stream(plane.tobytes(), level) for plane in planes(block, word_bytes)]
    if word_bytes > 1 and any(stream.is_matched for stream in split):
        # What repeats in a plane may be whole words, of which the bytes side by side make fewer matches.
        split = min(split, [_stream(block, level)], key=lambda streams: sum(len(stream.stored) for stream in streams))
    return [stream.stored for stream in split]


def decode(streams: Sequence[bytes | memoryview], length: int) -> Bytes:
    """Returns the block of `length` bytes that `encode` has stored as these streams.

    Raises:
        CorruptError: A stream does not decode to its plane.
    """
    lengths = plane_lengths(length, len(streams))
    return joined([_plane(stream, size) for stream, size in zip(streams, lengths, strict=True)])


def plane_lengths(length: int, word_bytes: int) -> list[int]:
    """Returns how many bytes each plane of a block of `length` bytes has."""
    words, rest = divmod(length, word_bytes)
    return [words + rest, *([words] * (word_bytes - 1))]


def huffman(plane: bytes) -> bytes:
    """Returns a Zstandard frame that is coded by the frequencies of the bytes alone."""
    return zstd.compress(plane, options=_HUFFMAN)


class _Stream(NamedTuple):
    stored: bytes
    is_matched: bool


def _stream(plane: bytes, level: int) -> _Stream:
    stored = min(plane, huffman(plane), key=len)
    matched = zstd.compress(plane, level)
    is_matched = len(matched) < _MATCHING_GAIN * len(stored)
    return _Stream(matched if is_matched else stored, is_matched)


def _plane(stream: bytes | memoryview, length: int) -> Bytes:
    if len(stream) == length:
        return np.frombuffer(stream, np.uint8)
    decompressor = zstd.ZstdDecompressor(options=_WINDOW)
    try:
        # One byte more than there is to be, so that a frame that says more is seen, and not written out.
        plane = decompressor.decompress(stream, length + 1)
    except zstd.ZstdError as exc:
        raise CorruptError(str(exc)) from exc
    if len(plane) != length or not decompressor.eof or decompressor.unused_data:
        raise CorruptError("the frame is of another length")
    return np.frombuffer(plane, np.uint8)
