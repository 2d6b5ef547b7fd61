"""Which names a bundle may hold, so that nothing is ever written outside of its folder."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tritonpress_generator.errors import InputError

PATH_BYTES = 1024
NAMES = 32
"""In a path: each is a folder that is made, however short its name."""
# Of ranges that are named, and not of Python's tables, which know more characters with each release: C0 and C1 move the
# cursor, lines and paragraphs end what was printed, and Unicode's Bidi_Control shows a name in another order.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def problem(path: str) -> str | None:
    """Returns why a bundle may not hold `path`, or None where it may.

    A path is relative, in its shortest form, with `/` between names, and means the same on every system.
    """
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    names = path.split("/")
    if size > PATH_BYTES or len(names) > NAMES:
        return f"is longer than {PATH_BYTES} bytes or {NAMES} names"
    if "" in names or "." in names or ".." in names:
        return "is not a relative path in its shortest form"
    if "\\" in path or path[1:2] == ":":
        return "has a backslash or a drive"
    if _CONTROLS.search(path):
        return "has a control character"
    return None


def clash(files: list[str], folders: list[str]) -> str | None:
    """Returns a path that occurs twice, or that is a file and has something below it; None where there is none."""
    seen: set[str] = set()
    for path in [*files, *folders]:
        if path in seen:
            return path
        seen.add(path)
    named = set(files)
    return next((folder for folder in above(seen) if folder in named), None)


def above(paths: Iterable[str]) -> Iterator[str]:
    """Yields each folder that one of the paths lies in, once."""
    seen: set[str] = set()
    for path in paths:
        while (path := path.rpartition("/")[0]) and path not in seen:
            seen.add(path)
            yield path


def resolved(path: Path) -> Path:
    """Returns where `path` leads.

    Raises:
        InputError: Its links lead in a circle.
    """
    try:
        return path.resolve()
    except RuntimeError as exc:  # of Python below 3.13
        raise InputError(f"{path}: must lead somewhere, has links in a circle; give another place") from exc


class Found(NamedTuple):
    """A file, or an empty folder."""

    path: str
    """Below the repository, with `/` between names."""
    place: Path
    size_bytes: int
    is_folder: bool
    is_executable: bool
    written: tuple[int, int]
    """Its number in the file system and when it was changed last: other ones where it was written meanwhile."""


def walk(root: Path) -> Iterator[Found]:
    """Yields each file and each empty folder below `root`, in the order of their names.

    Raises:
        InputError: A link, a device or a name that a bundle does not hold; or a folder cannot be read.
    """
    stack = [("", root)]
    while stack:
        path, place = stack.pop()
        if path and (wrong := problem(path)):
            raise InputError(f"repository {root}: the path {path!r} {wrong}, which a bundle does not hold; rename it")
        try:
            status = place.lstat() if path else place.stat()
            is_folder = stat.S_ISDIR(status.st_mode)
            inside = sorted(place.iterdir(), reverse=True) if is_folder else []
        except OSError as exc:
            raise InputError(f"{place}: cannot be read ({exc}); make it readable, and stop what changes it") from exc
        if stat.S_ISLNK(status.st_mode):
            raise InputError(f"{place}: is a symbolic link, which a bundle does not hold; put there what it points to")
        if not (is_folder or stat.S_ISREG(status.st_mode)):
            raise InputError(f"{place}: must be a file or a folder, which is all that a bundle holds; remove it")
        if path and not inside:
            size = 0 if is_folder else status.st_size
            written = (status.st_ino, status.st_mtime_ns)
            yield Found(path, place, size, is_folder, bool(status.st_mode & stat.S_IXUSR), written)
        stack += [(f"{path}/{below.name}" if path else below.name, below) for below in inside]
