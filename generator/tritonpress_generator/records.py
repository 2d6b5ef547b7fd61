"""Reads files of records: an object or a row a line."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonpress_generator.errors import InputError


def check_readable(path: Path) -> None:
    """Refuses what `read_text` would refuse because it is not there."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        path.stat()
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def read_text(path: Path) -> str:
    """Returns the text of a file, gzipped or not.

    Raises:
        InputError: Unreadable, or not UTF-8; names the line.
    """
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        bad_line = exc.object[: exc.start].count(b"\n") + 1
        raise InputError(
            f"{path}:{bad_line}: must be UTF-8, got byte 0x{exc.object[exc.start]:02x}; save it as UTF-8"
        ) from exc
    except (OSError, EOFError, zlib.error) as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, why: Exception) -> InputError:
    return InputError(f"{path}: cannot be read ({why}); correct the path in the recipe")


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the line number and the fields of each record of a JSONL, CSV or TSV file, gzipped or not.

    A TSV file has no quotes: a tab is what separates, and everything else is text.

    Raises:
        InputError: Unreadable, not UTF-8, or not what its name says; names the line.
    """
    text = read_text(path)
    name = path.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # of all readers, 131,072 by default
        stream = io.StringIO(text, newline="")
        if name.endswith(".csv"):
            reader = csv.DictReader(stream, strict=True)
        else:
            reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as exc:
            # The line that it is at; `line_num` is that of the last row.
            raise InputError(f"{path}:{reader.reader.line_num}: is not CSV ({exc}); correct the line") from exc
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            parsed = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise InputError(f"{path}:{number}: is not JSON ({exc}); one object a line") from exc
        if not isinstance(parsed, dict):
            raise InputError(f"{path}:{number}: must be a JSON object, got {type(parsed).__name__}; one object a line")
        yield number, parsed
