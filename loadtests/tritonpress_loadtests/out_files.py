"""What the commands write: a folder that is tried before what takes long, and files that come whole or not at all."""

from __future__ import annotations

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
