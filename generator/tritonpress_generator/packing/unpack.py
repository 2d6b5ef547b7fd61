"""Writes a bundle's files into a folder, in bounded memory, whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import BinaryIO, NoReturn

from tqdm import tqdm

from tritonpress_generator import workplace
from tritonpress_generator.errors import InputError
from tritonpress_generator.packing import bundle, coding, paths


@dataclass(frozen=True)
class Unpacked:
    """What a bundle has become."""

    files: int
    bytes: int


def unpack(file: Path, folder: Path) -> Unpacked:
    """Returns what was written into `folder`, which appears when every file has its sha256.

    Raises:
        InputError: `file` is no bundle, or not whole, or hostile; or `folder` is there and is not empty, or cannot be
            written.
    """
    try:
        if not file.is_file():
            raise InputError(f"{file}: must be a bundle of tritonpress pack, is no file; correct the path")
        target = paths.resolved(folder)
        _check_target(folder, target)
        with file.open("rb") as source:
            index = bundle.read(source, file)
            _check_space(index, folder, target)
            with workplace.within(target.parent, ".tritonpress-") as work:
                tree = work / "tree"
                _write(Reader(source, file, index), index, tree)
                # In the place of an empty folder, too; of one that is no longer empty it is an error.
                tree.rename(target)
    except OSError as exc:
        raise InputError(f"{file}: cannot be unpacked into {folder} ({exc}); nothing was written") from exc
    return Unpacked(len(index.files), index.size_bytes)


def _check_target(folder: Path, target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"{folder}: must be a new folder, is a file; give another")
    if target.exists() and any(target.iterdir()):
        raise InputError(f"{folder}: must be a new folder, is not empty; give another")
    if target == Path.cwd():
        raise InputError(f"{folder}: must be a new folder, is the one that this runs in; give another")
    if not target.parent.is_dir():
        raise InputError(f"{folder}: must lie in a folder, {target.parent} is none; make it first")


def _check_space(index: bundle.Index, folder: Path, target: Path) -> None:
    free = shutil.disk_usage(target.parent).free
    if index.size_bytes > free:
        raise InputError(f"{folder}: needs {index.size_bytes} bytes, the disk has {free}; make room, or give another")


def _write(reader: Reader, index: bundle.Index, tree: Path) -> None:
    _keep_chunks()
    tree.mkdir()
    for path in index.folders:
        (tree / path).mkdir(parents=True)
    with tqdm(total=index.size_bytes, desc="unpacking", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for file in index.files:
            _write_file(reader, file, tree / file.path, bar)


def _keep_chunks() -> None:
    """Makes glibc keep the memory of a block for the next: until a larger chunk was freed, it maps each one anew.

    Page faults take a fifth of the time, else (mallopt(3), M_MMAP_THRESHOLD).
    """
    chunk = bytes(32 * coding.BLOCK_BYTES)
    del chunk


def _write_file(reader: Reader, file: bundle.File, place: Path, bar: tqdm[NoReturn]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256()
    # "x": on a system that takes two names for one, the second is an error.
    with place.open("xb") as target:
        for number in file.contents:
            for block in reader.blocks(number):
                sha256.update(block)
                target.write(block)
                bar.update(len(block))
    if sha256.hexdigest() != file.sha256:
        raise InputError(f"{reader.path}: {file.path} does not have its sha256; {bundle.COPY_AGAIN}")
    if file.executable:
        # As `chmod +x` does: for those who may read it.
        mode = place.stat().st_mode
        place.chmod(mode | (mode & 0o444) >> 2)


class Reader:
    """Reads contents of a bundle."""

    def __init__(self, source: BinaryIO, path: Path, index: bundle.Index) -> None:
        self.path = path
        self._source = source
        self._contents = index.contents
        sizes = [sum(sum(block.streams) for block in content.blocks) for content in index.contents]
        self._starts = [*accumulate(sizes, initial=bundle.HEADER_BYTES)]

    def blocks(self, number: int) -> Iterator[memoryview]:
        """Yields the blocks of a content.

        Raises:
            InputError: A block is not what was packed.
        """
        content = self._contents[number]
        self._source.seek(self._starts[number])
        for block, length in zip(content.blocks, content.lengths(), strict=True):
            offset = self._source.tell()
            stored = self._source.read(sum(block.streams))
            if zlib.crc32(stored) != block.crc32:
                raise InputError(f"{self.path}: the block at byte {offset} does not have its CRC; {bundle.COPY_AGAIN}")
            ends = [*accumulate(block.streams, initial=0)]
            view = memoryview(stored)
            streams = [view[begin:end] for begin, end in pairwise(ends)]
            try:
                yield coding.decode(streams, length).data
            except coding.CorruptError as exc:
                raise InputError(
                    f"{self.path}: the block at byte {offset} is no code ({exc}); {bundle.COPY_AGAIN}"
                ) from exc
