"""What the commands write: a folder that is tried before what takes long, files whole or not at all, and lines."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from tritonpress_loadtests.errors import ScenarioError


def check_writable(folder: Path, *, remedy: str) -> None:
    """Says before what takes long what would be said when its results are written.

    Args:
        folder: Gets them.
        remedy: For the message.

    Raises:
        ScenarioError: No file can be written there.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as exc:
        raise ScenarioError(f"{folder} must be a folder that can be written: {exc.strerror}; {remedy}") from exc


def write_whole(path: Path, text: str) -> None:
    """Writes a file, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def say(text: str, *, end: str = "\n") -> None:
    """Prints at once; once that fails it and all that follows go nowhere, since files and exit status are still wanted.

    A reader that has had enough (`| head`) is no fault; anything else, such as a full disk, is told on standard error.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as exc:
        # What is left in the buffer must not raise again, now or at exit.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(exc, BrokenPipeError):
            # A terminal that is gone takes both.
            with contextlib.suppress(OSError):
                print(f"tritonpress-load: cannot print: {exc.strerror}; nothing more is shown", file=sys.stderr)
