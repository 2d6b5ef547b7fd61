"""What travels to the GPU machine, in as few calls as their size allows; `there.sh` opens it.

python -m visit pack .gpu

Every call takes the tracked files along and may bring 64 MiB in all. `.gpu` has `visit` (`prepare.py`), the kit with
TensorRT (`kit.part.*`) and its `unpack.sh`; `.gpu/parts/NNofMM` are written.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

THERE = "tests/gpu/visit/there.sh"
CALL_BYTES = 64 << 20
_MARGIN_BYTES = 1 << 20
"""For what the sizes of files do not say: their names, and how they are wrapped."""
_CHUNK_BYTES = 1 << 20


class PackError(Exception):
    """What is to travel is not there, or too large; one line says which."""


def pack(folder: Path, *, tree: Path = Path()) -> list[Path]:
    """Returns the files that travel, one a call: pieces of xz streams, the visit's and then the kit's.

    Args:
        folder: Below `tree`, ignored by git.
        tree: The checkout whose tracked files every call takes along.

    Raises:
        PackError: Something is missing, or the files of the checkout leave no room.
    """
    kit = sorted(folder.glob("kit.part.*"))
    for path, remedy in ((folder / "visit", "prepare it"), (folder / "unpack.sh", "pack the kit")):
        if not path.exists():
            raise PackError(f"{path}: must be there; {remedy} first")
    if not kit:
        raise PackError(f"{folder}/kit.part.*: must be there; pack the kit first")
    taken = travelling(tree)
    room = CALL_BYTES - _MARGIN_BYTES - taken
    if room < _CHUNK_BYTES:
        raise PackError(
            f"{tree.resolve()}: its files must leave room in {CALL_BYTES >> 20} MiB, take {taken / 2**20:.1f}; have "
            f"git ignore what need not travel, {folder} too"
        )
    packed = folder / "visit.tar.xz"
    with tarfile.open(packed, "w:xz", preset=3) as archive:
        for name in ("visit", "unpack.sh"):
            archive.add(folder / name, name)
    streams = [packed, *kit]
    count = -(-sum(path.stat().st_size for path in streams) // room)
    parts = folder / "parts"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    paths = [parts / f"{number:02}of{count:02}" for number in range(count)]
    _cut(streams, paths, room)
    packed.unlink()
    return paths


def travelling(tree: Path) -> int:
    """Returns the bytes that every call takes along: what git does not ignore, and `shared`."""
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {tree / name for name in listed.split("\0") if name}
    names |= {path for path in (tree / "shared").rglob("*") if path.is_file()}
    return sum(path.lstat().st_size for path in names if path.is_symlink() or path.exists())


def _cut(streams: Iterable[Path], paths: Iterable[Path], room: int) -> None:
    """Writes the bytes of `streams`, one after the other, into `paths`, `room` in each."""
    targets = iter(paths)
    part: BinaryIO | None = None
    left = 0
    try:
        for stream in streams:
            with stream.open("rb") as source:
                while data := source.read(min(left or room, _CHUNK_BYTES)):
                    if part is None or left == 0:
                        if part is not None:
                            part.close()
                        part, left = next(targets).open("wb"), room
                    part.write(data)
                    left -= len(data)
    finally:
        if part is not None:
            part.close()
