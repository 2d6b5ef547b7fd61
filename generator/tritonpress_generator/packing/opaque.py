"""Finds runs of numbers in bytes of no known format, such as a TensorRT plan's: by what coding makes of samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from backports import zstd

from tritonpress_generator.packing import coding
from tritonpress_generator.packing.formats import Tensor
from tritonpress_generator.packing.sizes import entropy_bytes

WINDOW_BYTES = 1 << 16
_SAMPLE_BYTES = 1 << 14
_GAIN = 0.99
"""A coding is taken in place of a simpler one, or of that of the window before, where it saves 1 %."""
_FEWEST = 0.1
"""Of weights, those of the rarer sign."""
_FEW_EXPONENTS = 0.5
"""Of a plane's bits: the entropy of exponents is less, that of FP16's exponents and first bits of mantissas is more."""


class _Words(NamedTuple):
    """How a window's bytes are words."""

    word_bytes: int
    phase: int
    """Where the first word begins, modulo `word_bytes`, from the beginning of the range."""
    precision: str


_OTHER = _Words(1, 0, "other")


def cut(file: BinaryIO, begin: int, end: int) -> Iterator[Tensor]:
    """Yields the runs of numbers between two offsets of a file and what lies between them, one behind the other.

    A run is found in windows of `WINDOW_BYTES`; a range that is shorter is one run that is not numbers.
    """
    if begin == end:
        return
    start, words = begin, _OTHER
    for offset in range(begin, end, WINDOW_BYTES):
        is_whole = offset + WINDOW_BYTES <= end
        # What is left at the end is what lies before it.
        found = _words(file, begin, offset, words) if is_whole else words
        if found != words:
            stop = offset + (begin + found.phase - offset) % found.word_bytes
            if stop > start:
                yield Tensor(start, stop - start, words.precision)
            start, words = stop, found
    yield Tensor(start, end - start, words.precision)


def _words(file: BinaryIO, begin: int, offset: int, before: _Words) -> _Words:
    """Returns what the window at `offset` looks like."""
    place = offset + (WINDOW_BYTES - _SAMPLE_BYTES) // 2
    file.seek(place)
    sample = file.read(_SAMPLE_BYTES)
    if len(sample) < _SAMPLE_BYTES:
        return _OTHER  # the file has become shorter, which is seen when it is read
    best, least = _OTHER, _GAIN * len(zstd.compress(sample, coding.TENSOR_LEVEL))
    for word_bytes in (1, 2, 4):
        for phase in range(word_bytes):
            skipped = (begin + phase - place) % word_bytes
            planes = coding.planes(sample[skipped:], word_bytes)
            if not _has_both_signs(planes):
                continue
            words = _Words(word_bytes, phase, _precision(planes))
            size = skipped + entropy_bytes(planes, corrected=True)
            if words == before:
                size *= _GAIN
            if size < (least if word_bytes == best.word_bytes else _GAIN * least):
                best, least = words, size
    return best


def _has_both_signs(planes: list[coding.Bytes]) -> bool:
    """Says whether words can be weights, or UINT8's around 128; of text the highest bits are all zero."""
    signs = planes[0] & 1 if len(planes) > 1 else planes[0] >> 7
    return bool(_FEWEST < signs.mean() < 1 - _FEWEST)


def _precision(planes: list[coding.Bytes]) -> str:
    if len(planes) == 2:
        return "BF16" if entropy_bytes(planes[1:]) < _FEW_EXPONENTS * len(planes[1]) else "FP16"
    return {1: "INT8", 4: "FP32"}[len(planes)]
