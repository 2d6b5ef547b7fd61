"""A bundle's header and index: how they are written, and what is checked of them before anything is made of them.

Whatever is wrong with a bundle is an `InputError` of one line.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from tritonpress_generator.errors import InputError
from tritonpress_generator.packing import coding, paths

MAGIC = b"\x89TPPACK\n"
VERSION = 1
_HEADER = struct.Struct("<8sQQQ32s")
HEADER_BYTES = _HEADER.size

INDEX_BYTES = 16 << 20
FILES = 100_000
"""As many folders may be made, too."""
REFERENCES = 1_000_000
"""Contents, and places where files name them."""
MARKS = {b"[{": 600_000, b":": 800_000, b",": 2_500_000}
"""How often an index may have one of these characters, which begin lists, keys and entries: parsed, each takes up to
half a kilobyte. One of weights has fewer in all of `INDEX_BYTES`."""
FREE_BYTES = 1 << 30
RATIO = 100
"""What is unpacked may be this many times the bundle and `FREE_BYTES`."""

_FILE_TEXT_BYTES = 130
"""What the index says of a file at least, beside its path."""
_BLOCK_TEXT_BYTES = len('{"crc32":4294967295,"streams":[65536,65536,65536,65536]},')
"""What it says of a block of FP32."""

_LISTED = 1_000
"""Faults of an index of which the first is looked for, in Pydantic's list of all: each unknown key is one."""
_SHOWN = 200
"""Characters of what a bundle says that a message repeats."""

_Count = Annotated[int, Field(ge=0, le=2**48)]
_FIRST = FailFast()
"""Of a list: a fault of each of millions of entries takes more memory than they do."""
COPY_AGAIN = "copy the bundle again, or pack the repository again"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Block(_Entry):
    """A block as it lies in the bundle."""

    crc32: Annotated[int, Field(ge=0, lt=2**32)]
    """Of its streams, one behind the other."""
    streams: Annotated[list[Annotated[int, Field(ge=1, le=coding.BLOCK_BYTES)]], Field(min_length=1, max_length=4)]
    """Their lengths, one for each byte of a word."""


class Content(_Entry):
    """A tensor, or what lies between tensors."""

    bytes: Annotated[int, Field(ge=1, le=2**48)]
    blocks: Annotated[list[Block], _FIRST]

    def lengths(self) -> Iterator[int]:
        """Yields how many bytes each block decodes to."""
        for start in range(0, self.bytes, coding.BLOCK_BYTES):
            yield min(coding.BLOCK_BYTES, self.bytes - start)


class File(_Entry):
    """A file of the repository."""

    path: str
    bytes: _Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    executable: bool
    contents: Annotated[list[_Count], _FIRST]
    """Places in the index's list, one behind the other."""


class Index(_Entry):
    """What a bundle holds."""

    files: Annotated[list[File], Field(max_length=FILES), _FIRST]
    folders: Annotated[list[str], Field(max_length=FILES), _FIRST]
    """Those that are empty."""
    contents: Annotated[list[Content], Field(max_length=REFERENCES), _FIRST]

    @property
    def size_bytes(self) -> int:
        """Returns how large the files are."""
        return sum(file.bytes for file in self.files)

    @property
    def stored_bytes(self) -> int:
        """Returns how large the blocks are, stored."""
        return sum(sum(block.streams) for content in self.contents for block in content.blocks)


def check_sizes(files: Sequence[paths.Found]) -> None:
    """Refuses files that are too many or too large for a bundle, before any of them is coded.

    Raises:
        InputError: They are. Files of one size may be the same, and count once.
    """
    if len(files) > FILES:
        raise InputError(f"the repository must have at most {FILES} files, has {len(files)}; pack less at once")
    blocks = sum(-(-size // coding.BLOCK_BYTES) for size in {file.size_bytes for file in files})
    entries = sum(_FILE_TEXT_BYTES + len(file.path) for file in files)
    check_index(blocks * _BLOCK_TEXT_BYTES + entries)


def check_index(length: int) -> None:
    """Raises InputError for an index of `length` bytes or more, where that is too large."""
    if length > INDEX_BYTES:
        weights_gb = INDEX_BYTES // _BLOCK_TEXT_BYTES * coding.BLOCK_BYTES / 1e9
        raise InputError(
            f"the index must be at most {INDEX_BYTES} bytes (some {weights_gb:.0f} GB of weights), would be {length} "
            "or more; pack less at once"
        )


def write(file: BinaryIO, files: list[File], folders: list[str], contents: list[Content]) -> int:
    """Returns the size of the bundle, whose blocks lie in `file` behind the place of the header, once it is whole.

    Raises:
        InputError: It is more than `read` would take.
    """
    try:
        index = Index(files=files, folders=folders, contents=contents)
    except ValidationError as exc:
        raise InputError(f"the repository cannot be a bundle: {_first(exc)}; pack less at once") from exc
    text = json.dumps(index.model_dump(), separators=(",", ":")).encode()
    begin = file.seek(0, 2)
    size = begin + len(text)
    if fault := _fault_of_text(text) or _fault(index, stored=begin - HEADER_BYTES, size=size):
        raise InputError(f"the repository cannot be a bundle: {fault}; pack less at once")
    check_index(len(text))
    file.write(text)
    file.seek(0)
    file.write(_HEADER.pack(MAGIC, VERSION, begin, len(text), hashlib.sha256(text).digest()))
    return size


def read(file: BinaryIO, path: Path) -> Index:
    """Returns the index of the bundle `file`, checked; its first block lies at `HEADER_BYTES`.

    Raises:
        InputError: It is no bundle, is not whole, or declares what no repository has; names `path`.
    """
    size = file.seek(0, 2)
    file.seek(0)
    header = file.read(HEADER_BYTES)
    if header[: len(MAGIC)] != MAGIC[: len(header)] or not header:
        raise InputError(f"{path}: must be a bundle of tritonpress pack, begins otherwise; give another file")
    if len(header) < HEADER_BYTES:
        raise InputError(f"{path}: must have a header of {HEADER_BYTES} bytes, ends after {len(header)}; {COPY_AGAIN}")
    _, version, begin, length, sha256 = _HEADER.unpack(header)
    if version != VERSION:
        raise InputError(f"{path}: version must be {VERSION}, got {version}; unpack it with another tritonpress")
    if length > INDEX_BYTES:
        raise InputError(f"{path}: the index must be at most {INDEX_BYTES} bytes, got {length}; {COPY_AGAIN}")
    if begin + length != size:
        raise InputError(f"{path}: must be {begin + length} bytes, has {size}; {COPY_AGAIN}")
    file.seek(begin)
    text = file.read(length)
    if hashlib.sha256(text).digest() != sha256:
        raise InputError(f"{path}: the index does not have its sha256; {COPY_AGAIN}")
    if fault := _fault_of_text(text):
        raise InputError(f"{path}: {fault}; {COPY_AGAIN}")
    try:
        index = Index.model_validate_json(text)
    except ValidationError as exc:
        raise InputError(f"{path}: {_first(exc)}; {COPY_AGAIN}") from exc
    if fault := _fault(index, stored=begin - HEADER_BYTES, size=size):
        raise InputError(f"{path}: {fault}; {COPY_AGAIN}")
    return index


def _first(error: ValidationError) -> str:
    """Returns the first thing that is wrong, in one line."""
    if error.error_count() > _LISTED:
        return f"the index is not as it must be: {error.error_count()} things in it"
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(repr, first["loc"]))[:_SHOWN] or "it"
    return f"the index is not as it must be: {place}: {first['msg']}"


def _fault(index: Index, *, stored: int, size: int) -> str | None:
    """Returns what is wrong with an index of a bundle of `size` bytes, `stored` of which are blocks."""
    if fault := _fault_of_paths(index) or _fault_of_contents(index):
        return fault
    if index.stored_bytes != stored:
        return f"the blocks must be {index.stored_bytes} bytes, are {stored}"
    limit = max(FREE_BYTES, RATIO * size)
    if index.size_bytes > limit:
        return f"its files must be at most {limit} bytes (1 GiB, or {RATIO} times the bundle), are {index.size_bytes}"
    return None


def _fault_of_text(text: bytes) -> str | None:
    """Returns what is wrong with the text of an index, which is known without parsing it: that takes memory."""
    for marks, most in MARKS.items():
        if (found := sum(map(text.count, marks))) > most:
            return f"the index must have at most {most} of {' and '.join(marks.decode())}, has {found}"
    return None


def _fault_of_paths(index: Index) -> str | None:
    files = [file.path for file in index.files]
    for path in [*files, *index.folders]:
        if wrong := paths.problem(path):
            return f"the path {path[:_SHOWN]!r} {wrong}"
    # No more of them than that: paths of 16 MiB may name millions.
    if len({*index.folders, *islice(paths.above([*files, *index.folders]), FILES + 1)}) > FILES:
        return f"there must be at most {FILES} folders, are more"
    twice = paths.clash(files, index.folders)
    return f"the path {twice[:_SHOWN]!r} is there twice, or is a file and a folder" if twice else None


def _fault_of_contents(index: Index) -> str | None:
    """Returns what is wrong with the lengths: each follows from the one above it, so that none can be made up."""
    faults = (fault for content in index.contents if (fault := _fault_of_blocks(content)))
    if fault := next(faults, None):
        return fault
    references = [place for file in index.files for place in file.contents]
    if len(references) > REFERENCES:
        return f"its files must name at most {REFERENCES} contents, name {len(references)}"
    if set(references) != set(range(len(index.contents))):
        return "its files must name each content that there is, and no other"
    for file in index.files:
        size = sum(index.contents[place].bytes for place in file.contents)
        if file.bytes != size:
            return f"{file.path}: must be {file.bytes} bytes, its contents are {size}"
    return None


def _fault_of_blocks(content: Content) -> str | None:
    if len(content.blocks) != -(-content.bytes // coding.BLOCK_BYTES):
        return (
            f"a content of {content.bytes} bytes has {len(content.blocks)} blocks, of {coding.BLOCK_BYTES} bytes each"
        )
    for block, length in zip(content.blocks, content.lengths(), strict=True):
        if len(block.streams) not in {1, *coding.WORDS}:
            return f"a block must have 1, 2 or 4 streams, has {len(block.streams)}"
        planes = coding.plane_lengths(length, len(block.streams))
        if any(stream > plane for stream, plane in zip(block.streams, planes, strict=True)):
            return f"a block of {length} bytes has a stream that is longer than its plane"
    return None
