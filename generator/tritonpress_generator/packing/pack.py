"""Writes a repository into a bundle, in bounded memory."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from tqdm import tqdm

from tritonpress_generator import workplace
from tritonpress_generator.errors import InputError
from tritonpress_generator.packing import bundle, coding, extents, paths
from tritonpress_generator.packing.formats import WORD_BYTES, Tensor
from tritonpress_generator.packing.sizes import Packed, entropy_bytes


def pack(repository: Path, file: Path) -> Packed:
    """Returns what the repository's files take in the bundle that was written to `file`, whole or not at all.

    The same files make the same bundle, with the same release of Zstandard; times and owners are not in it.

    Raises:
        InputError: The repository cannot be read, has what a bundle does not hold, or changes meanwhile; or `file`
            cannot be written, lies in the repository, or is something else than a bundle.
    """
    try:
        _check_places(repository, file)
        found = list(paths.walk(repository))
        if not found:
            raise InputError(f"repository {repository}: must hold files, is empty; run tritonpress build")
        bundle.check_sizes([entry for entry in found if not entry.is_folder])
        with workplace.within(file.absolute().parent, ".tritonpress-") as work:
            partial = work / "bundle"
            with partial.open("xb") as target, _bar(found) as bar:
                packed = _Writer(target, bar).write(found)
                target.flush()
                os.fsync(target.fileno())
            # A build that has ended meanwhile names in one file what was not listed among the others.
            if list(paths.walk(repository)) != found:
                raise InputError(f"repository {repository}: changes while it is packed; stop what writes it")
            partial.replace(file)
    except OSError as exc:
        raise InputError(f"{repository}: cannot be packed into {file} ({exc}); nothing was written") from exc
    return packed


def _check_places(repository: Path, file: Path) -> None:
    """Refuses what is no folder, and a place where the bundle would destroy something or be packed into itself."""
    if not repository.is_dir():
        raise InputError(f"repository {repository}: must be a folder, is none; run tritonpress build")
    if paths.resolved(file).is_relative_to(repository.resolve()):
        raise InputError(f"{file}: must not lie in the repository that is packed; give another place")
    if file.exists() and not _is_bundle(file):
        raise InputError(f"{file}: is there, and is no bundle; remove it, or give another place")


def _is_bundle(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as begin:
        return begin.read(len(bundle.MAGIC)) == bundle.MAGIC


def _bar(found: list[paths.Found]) -> tqdm[NoReturn]:
    total = sum(entry.size_bytes for entry in found)
    return tqdm(total=total, desc="packing", unit="B", unit_scale=True, leave=False, disable=None)


class _Writer:
    """Writes contents behind one another, and keeps what the index will say of them."""

    def __init__(self, target: BinaryIO, bar: tqdm[NoReturn]) -> None:
        self._target = target
        self._bar = bar
        self._contents: list[bundle.Content] = []
        self._index_bytes = 0
        self._known: dict[bytes, int] = {}
        self._packed = Packed()

    def write(self, found: list[paths.Found]) -> Packed:
        """Returns what was written for these files and empty folders."""
        self._target.write(bytes(bundle.HEADER_BYTES))
        files = [self._file(entry) for entry in found if not entry.is_folder]
        folders = [entry.path for entry in found if entry.is_folder]
        self._packed.packed_bytes = bundle.write(self._target, files, folders, self._contents)
        self._packed.files, self._packed.bytes = len(files), sum(file.bytes for file in files)
        return self._packed

    def _file(self, entry: paths.Found) -> bundle.File:
        sha256 = hashlib.sha256()
        with entry.place.open("rb") as source:
            found = list(extents.cut(source, entry.place))
            numbers = [self._content(source, extent, sha256) for extent in found]
            size = source.seek(0, os.SEEK_END)
        if size != sum(extent.bytes for extent in found):
            raise InputError(f"{entry.place}: changes while it is packed; stop what writes it")
        return bundle.File(
            path=entry.path, bytes=size, sha256=sha256.hexdigest(), executable=entry.is_executable, contents=numbers
        )

    def _content(self, source: BinaryIO, extent: Tensor, whole: hashlib._Hash) -> int:
        """Returns the number of a content, which is coded and written if there is none like it."""
        own = hashlib.sha256()
        for block in _blocks(source, extent):
            own.update(block)
            whole.update(block)
        key = own.digest()
        if key in self._known:
            self._packed.repeated_bytes += extent.bytes
            self._bar.update(extent.bytes)
            return self._known[key]
        again, size, blocks = hashlib.sha256(), self._packed.sizes[extent.precision], []
        for block in _blocks(source, extent):
            again.update(block)
            blocks.append(self._block(block, extent.precision))
            size.bytes += len(block)
            size.packed_bytes += sum(blocks[-1].streams)
            size.bound_bytes += entropy_bytes(coding.planes(block, WORD_BYTES[extent.precision]))
            self._bar.update(len(block))
        if again.digest() != key:
            raise InputError(f"{source.name}: changes while it is packed; stop what writes it")
        self._contents.append(bundle.Content(bytes=extent.bytes, blocks=blocks))
        self._known[key] = len(self._contents) - 1
        return self._known[key]

    def _block(self, block: bytes, precision: str) -> bundle.Block:
        level = coding.OTHER_LEVEL if precision == "other" else coding.TENSOR_LEVEL
        streams = coding.encode(block, WORD_BYTES[precision], level=level)
        stored = b"".join(streams)
        self._target.write(stored)
        entry = bundle.Block(crc32=zlib.crc32(stored), streams=list(map(len, streams)))
        self._index_bytes += len(entry.model_dump_json())
        bundle.check_index(self._index_bytes)  # of many small tensors it is larger than it seemed to be
        return entry


def _blocks(source: BinaryIO, extent: Tensor) -> Iterator[bytes]:
    """Yields an extent's bytes, in blocks.

    Raises:
        InputError: The file has become shorter.
    """
    for start in range(0, extent.bytes, coding.BLOCK_BYTES):
        source.seek(extent.offset + start)
        length = min(coding.BLOCK_BYTES, extent.bytes - start)
        block = source.read(length)
        if len(block) != length:
            raise InputError(f"{source.name}: changes while it is packed; stop what writes it")
        yield block
