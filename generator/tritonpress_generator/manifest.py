"""Reads a manifest, whose entries name files and folders: what it says is checked before anything is done with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from tritonpress_generator.packing import paths

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,254}$")]
"""Of a folder beside the workload's: no path."""


class _File(BaseModel):
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class _Manifest(BaseModel):
    build: Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
    steps: dict[str, _Name]
    files: dict[str, _File]
    golden: dict[str, Any]
    versions: dict[str, str] = {}
    created: str = ""
    ensemble: str = ""


class ManifestError(ValueError):
    """A manifest cannot be read, or does not say what one must; the message is why."""


def read(path: Path) -> dict[str, Any]:
    """Returns the manifest at `path`, with all that it says.

    Raises:
        ManifestError: See there.
    """
    try:
        if not path.is_file():  # a pipe or a device would be waited for
            raise ManifestError("is no file")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _Manifest.model_validate(content)
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, error["loc"])) or "it"
        raise ManifestError(f"{place[:200]}: {error['msg'].lower()}") from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise ManifestError(str(exc)) from exc
    for file in content["files"]:
        if wrong := paths.problem(file):
            raise ManifestError(f"files: the path {file[:200]!r} {wrong}")
    return content
