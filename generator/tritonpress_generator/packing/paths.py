"""Which names a bundle may hold, so that nothing is ever written outside of its folder."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tritonpress_generator.errors import InputError

PATH_BYTES = 1024


def problem(path: str) -> str | None:
    """Returns why a bundle may not hold `path`, or None where it may.

    A path is relative, in its shortest form, with `/` between names, and means the same on every system.
    """
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    if size > PATH_BYTES:
        return f"is longer than {PATH_BYTES} bytes"
    names = path.split("/")
    if "" in names or "." in names or ".." in names:
        return "is not a relative path in its shortest form"
    if "\\" in path or path[1:2] == ":":
        return "has a backslash or a drive"
    if not path.isprintable():
        return "has a character that cannot be printed"
    return None


def clash(files: list[str], folders: list[str]) -> str | None:
    """Returns a path that occurs twice, or that is a file and has something below it; None where there is none."""
    seen: set[str] = set()
    for path in [*files, *folders]:
        if path in seen:
            return path
        seen.add(path)
    named = set(files)
    parents = (str(parent) for path in seen for parent in Path(path).parents)
    return next((parent for parent in parents if parent in named), None)


class Found(NamedTuple):
    """A file, or an empty folder."""

    path: str
    """Below the repository, with `/` between names."""
    place: Path
    size_bytes: int
    is_folder: bool
    is_executable: bool


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
            yield Found(path, place, size, is_folder, bool(status.st_mode & stat.S_IXUSR))
        stack += [(f"{path}/{below.name}" if path else below.name, below) for below in inside]
