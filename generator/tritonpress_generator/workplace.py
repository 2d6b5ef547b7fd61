"""Where the files of a workload are written before they are put in their place, by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonpress_generator.errors import InputError, PlaceError

_SCRATCH = "tritonpress-work-"
_LOCK = ".lock"
"""Of a folder that is in use; a workload's name does not begin with a dot."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Of a file system, as of networks: nobody holds anything there, and what is written is written all the same."""


@contextmanager
def scratch() -> Iterator[Path]:
    """Yields a folder for what is needed for a while; those of processes that were killed are removed.

    It lies where the system has such folders (`TMPDIR`).

    Raises:
        PlaceError: It cannot be made or written, or there is no room in it.
    """
    place = "TMPDIR"
    try:
        place = tempfile.gettempdir()
        with within(Path(place), _SCRATCH) as folder:
            yield folder
    except OSError as exc:
        raise PlaceError(
            f"{place}: must have room for what is computed meanwhile ({exc}); make some, or set TMPDIR"
        ) from exc


@contextmanager
def within(place: Path, prefix: str) -> Iterator[Path]:
    """Yields a folder in `place`, whose name begins with `prefix`; those of processes that were killed are removed."""
    _remove_litter(place, prefix)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=place) as folder, _locked(Path(folder)):
        yield Path(folder)


@contextmanager
def at_work(repository: Path, name: str, *, wait: bool) -> Iterator[Path]:
    """Yields a folder for what is being written, while no other process changes the workload `name`.

    It lies inside the repository, so that renaming stays within one file system, and inside the ensemble's folder,
    since Triton takes every folder beside it for a model, hidden ones too.

    Raises:
        InputError: Another process changes it, and `wait` is False.
    """
    target = repository / name
    with held(target, wait=wait) as is_held:
        if not is_held:
            raise InputError(f"{target}: another build, promote or rollback is changing it; wait until that has ended")
        with within(target, ".build-") as work:
            yield work


@contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Yields whether no other process holds `folder`, which this one then does; `wait` until it is so."""
    lock = os.open(folder, os.O_RDONLY)
    is_held = True
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            is_held = False
        except OSError as exc:
            if exc.errno not in _NO_LOCKS:
                raise
        yield is_held
    finally:
        os.close(lock)


def check_writable(folder: Path, *, what: str, remedy: str) -> None:
    """Says before what takes long what would be said when its results are written.

    Args:
        folder: Gets them; it need not exist.
        what: It is, for the message.
        remedy: Likewise.

    Raises:
        PlaceError: It is no folder, or could not be made or written.
    """
    # Not `Path.exists`, which raises where it may not look.
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))  # noqa: PTH110
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise PlaceError(f"{what}: must be a folder that can be written, {nearest} is none; {remedy}")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a lock in `folder`: its owner may run on another host or in another container, where its pid is unknown."""
    new = folder / f"{_LOCK}.new"
    with new.open("wb") as lock:
        # Where a file system has no locks nobody else gets this one either.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        new.rename(folder / _LOCK)  # there only once it is held
        yield


def _remove_litter(target: Path, prefix: str) -> None:
    """Removes what processes that were killed have left; one that still runs keeps its own."""
    for folder in target.glob(f"{prefix}*-*"):
        owner = folder.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and _is_left(folder, owner):
            shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path, owner: str) -> bool:
    """Returns whether the process that has made `folder`, `owner` where it runs, has ended."""
    try:
        with (folder / _LOCK).open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        # Killed before it held the lock, or of a version that had none.
        return not Path(f"/proc/{owner}").exists()
    except OSError:
        return False


def replace(target: Path, text: str, work: Path) -> None:
    """Puts `text` at `target` in one step."""
    new = work / f"{target.parent.name}.{target.name}"
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(target)
