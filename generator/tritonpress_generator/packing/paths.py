"""Which names a bundle may hold, so that nothing is ever written outside of its folder."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

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


def walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Yields the path below `root` and the place of each file and of each empty folder, in the order of their names.

    Raises:
        InputError: A link, a device or a name that a bundle does not hold; or a folder cannot be read.
    """
    stack = [("", root)]
    while stack:
        name, place = stack.pop()
        try:
            mode = place.lstat().st_mode if name else place.stat().st_mode
            inside = sorted(place.iterdir(), reverse=True) if stat.S_ISDIR(mode) else []
        except OSError as exc:
            raise InputError(
                f"repository {root}: cannot be read ({exc}); let nothing change it while it is packed"
            ) from exc
        if name and (wrong := problem(name)):
            raise InputError(f"repository {root}: the path {name!r} {wrong}, which a bundle does not hold; rename it")
        if stat.S_ISLNK(mode):
            raise InputError(f"{place}: is a symbolic link, which a bundle does not hold; put there what it points to")
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise InputError(f"{place}: must be a file or a folder, which is all that a bundle holds; remove it")
        if name and not inside:
            yield name, place
        stack += [(f"{name}/{path.name}" if name else path.name, path) for path in inside]
