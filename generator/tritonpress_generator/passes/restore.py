"""Cuts a model as was chosen elsewhere, and adds what was learnt there: what `tritonpress distill --out` has written.

So a compressed model travels as masks and low-rank differences to the checkpoint that it was made of, a few hundred
kilobytes, and is built without training and without the examples.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from tritonpress_generator import cuts
from tritonpress_generator.checkpoint import ADAPTER, CUTS
from tritonpress_generator.compression import Compressed, Material, copied
from tritonpress_generator.errors import InputError
from tritonpress_generator.passes.crop import check_segments
from tritonpress_generator.pretrained import merged
from tritonpress_generator.recipe_text import Settings

_MOST_BYTES = 16 << 20
"""Of `CUTS`, which has some kilobytes."""


class Config(Settings):
    folder: str = Field(min_length=1)
    """What `tritonpress distill --out` has written, relative to the recipe."""


class _Written(Settings):
    """What `CUTS` holds."""

    checkpoint: Annotated[list[str | None], Field(min_length=2, max_length=2)]
    """The hashes of the weights, and of their adapter."""
    cuts: list[Annotated[dict[str, Any], Field(min_length=1, max_length=1)]]
    """As `cuts.written` gives them."""
    chosen: dict[str, float]
    """On held-out examples: a threshold, a temperature."""
    report: dict[Literal["crop", "prune", "distill"], dict[str, Any]]
    """What each pass has done."""
    adapter: str | None = None
    """As `adapter_digest` gives it; what was written before that was looked at does not say it."""


def apply(given: Compressed, config: Config, material: Material) -> Compressed:
    """Returns the model as it was when it was written.

    Args:
        given: The checkpoint that was cut; is left as it is.
        config: The settings.
        material: Knows where the recipe is, and the checkpoint's hash.

    Raises:
        InputError: The folder cannot be read, is of another checkpoint, or does not fit the model or its task.
    """
    folder = material.recipe.file(config.folder)
    written = _read(folder / CUTS)
    if written.checkpoint != [material.checkpoint.sha256, material.checkpoint.adapter_sha256]:
        raise InputError(
            f"passes.restore: {folder} must be of the recipe's checkpoint ({material.checkpoint.sha256[:12]}…), is of "
            f"{str(written.checkpoint[0])[:12]}… or of another adapter; restore what was made of this one"
        )
    if written.adapter is not None and written.adapter != adapter_digest(folder):
        raise InputError(
            f"passes.restore: {folder} must have the adapter that was written with its {CUTS}, has another or none; "
            "write both again with tritonpress distill --out"
        )
    if any("segments" in cut for cut in written.cuts):
        check_segments(given.model, material)
    result = cuts.again(copied(given), written.cuts)
    model, history = result.model, given.history
    if (folder / ADAPTER).is_file():
        model = merged(result.model, folder)
        history = (*history, hashlib.sha256((folder / ADAPTER).read_bytes()).hexdigest())
    report = result.report | written.report
    return replace(result, model=model.eval(), report=report, history=history, chosen=written.chosen)


def adapter_digest(folder: Path) -> str:
    """Returns a hash of the adapter in `folder`, its settings too, or of what of it is there."""
    found = hashlib.sha256()
    for name in ("adapter_config.json", ADAPTER):
        if (folder / name).is_file():
            found.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    return found.hexdigest()


def _read(path: Path) -> _Written:
    """Returns what the file at `path` says, if it says what one must."""
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would be waited for
            raise OSError("is no file")
        if path.stat().st_size > _MOST_BYTES:
            raise OSError(f"has more than {_MOST_BYTES >> 20} MiB")
        return _Written.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, error["loc"])) or "it"
        why = f"{place[:200]}: {error['msg'].lower()}"
        cause: Exception = exc
    except (OSError, ValueError, RecursionError) as exc:
        why, cause = f"{type(exc).__name__}: {exc}", exc
    raise InputError(
        f"passes.restore: {path} cannot be read ({why}); give a folder that tritonpress distill --out has written"
    ) from cause
