"""Writes the generated files, and loses nothing that somebody else has written among them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tritonpress_generator import workplace
from tritonpress_generator.errors import InputError

RECORD = "deploy.json"
"""What was generated of what, and the sha256 of each file."""
SCHEMA = "tritonpress-deploy/1"
_STAGING = ".deploy-"
"""With which the folders begin that a call writes in; one that was killed leaves its own."""
_CHUNK = 1 << 20

Content = str | bytes | Path
"""A path stands for its file's content."""


def yaml_text(content: Mapping[str, Any]) -> str:
    """Returns `content` as YAML, keys in their order, long lines whole."""
    return yaml.safe_dump(dict(content), sort_keys=False, width=10_000, allow_unicode=True)


def earlier(out: Path) -> dict[str, Any]:
    """Returns the record of what was generated into `out` before; empty if that is a new or an empty folder.

    One in which a first call was killed before it had put anything in its place counts as empty.

    Raises:
        InputError: It is something else.
    """
    try:
        if not out.exists() or (out.is_dir() and all(path.name.startswith(_STAGING) for path in out.iterdir())):
            return {}
        record: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA or not isinstance(record["files"], dict):
            raise ValueError(f"of schema {record['schema']}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise InputError(
            f"--out {out}: must be a new folder, or one that tritonpress deploy wrote, has no {RECORD} that can be"
            f" read ({exc}); give another"
        ) from exc
    return record


def write(out: Path, files: Mapping[str, Content], about: Mapping[str, Any]) -> None:
    """Writes `files` into `out` with a record of them, and removes what an earlier call wrote that is not among them.

    What an earlier call did not write stays.

    Args:
        out: The folder.
        files: By their paths in it.
        about: What the record says beside the files.

    Raises:
        InputError: A file was changed since an earlier call wrote it, or is not of an earlier call; or `out` cannot be
            written.
    """
    before: dict[str, str] = earlier(out).get("files", {})
    try:
        out.mkdir(parents=True, exist_ok=True)
        with workplace.within(out, _STAGING) as work:
            new = {path: _stage(content, work / path) for path, content in files.items()}
            for path in sorted({*new, *before}):
                _check_unchanged(out, path, {before.get(path), new.get(path)})
            record = {"schema": SCHEMA, **about, "files": new}
            _stage(json.dumps(record, indent=2, ensure_ascii=False) + "\n", work / RECORD)
            # A call that is killed can be given again: the record knows what there is, before it or by it.
            for path in new if before else (RECORD, *new):
                (out / path).parent.mkdir(parents=True, exist_ok=True)
                (work / path).replace(out / path)
            for path in set(before) - set(new):
                (out / path).unlink(missing_ok=True)
                _remove_empty(out, (out / path).parent)
            if before:
                (work / RECORD).replace(out / RECORD)
    except OSError as exc:
        raise InputError(f"--out {out}: cannot be written ({exc}); run it again, or give another") from exc


def _stage(content: Content, target: Path) -> str:
    """Returns the sha256 of what was written to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, target)
    else:
        target.write_bytes(content.encode() if isinstance(content, str) else content)
    return _sha256(target)


def _check_unchanged(out: Path, path: str, known: set[str | None]) -> None:
    place = out / path
    if not place.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--out {out}: {path} leads out of it; give another folder")
    if place.exists() and (not place.is_file() or _sha256(place) not in known):
        raise InputError(
            f"{place}: has been changed since tritonpress deploy wrote it, and would be lost; keep the change in an"
            " overlay of your own, or give another --out"
        )


def _remove_empty(out: Path, folder: Path) -> None:
    while folder != out and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def relative(path: Path, start: Path) -> str:
    """Returns `path` as seen from `start`, both wherever they are."""
    return os.path.relpath(path.resolve(), start.resolve())
