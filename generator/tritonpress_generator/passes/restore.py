"""Cuts a model as was chosen elsewhere, and adds what was learnt there: what `tritonpress distill --out` has written.

So a compressed model travels as masks and low-rank differences to the checkpoint that it was made of, a few hundred
kilobytes, and is built without training and without the examples.
"""

from __future__ import annotations

import json
from dataclasses import replace

from pydantic import Field

from tritonpress_generator import cuts
from tritonpress_generator.checkpoint import ADAPTER
from tritonpress_generator.compression import Compressed, Material, copied
from tritonpress_generator.errors import InputError
from tritonpress_generator.pretrained import merged
from tritonpress_generator.recipe import Settings

CUTS = "cuts.json"


class Config(Settings):
    folder: str = Field(min_length=1)
    """What `tritonpress distill --out` has written, relative to the recipe."""


def apply(given: Compressed, config: Config, material: Material) -> Compressed:
    """Returns the model as it was when it was written.

    Args:
        given: The checkpoint that was cut; is left as it is.
        config: The settings.
        material: Knows where the recipe is, and the checkpoint's hash.

    Raises:
        InputError: The folder cannot be read, or is of another checkpoint.
    """
    folder = material.recipe.file(config.folder)
    path = folder / CUTS
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        hashes, made = written["checkpoint"], written["cuts"]
        report, chosen = written["report"], written["chosen"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputError(
            f"passes.restore: {path} cannot be read ({type(exc).__name__}: {exc}); give a folder that tritonpress "
            "distill --out has written"
        ) from exc
    of_recipe = [material.checkpoint.sha256, material.checkpoint.adapter_sha256]
    if hashes != of_recipe:
        raise InputError(
            f"passes.restore: {folder} must be of the recipe's checkpoint ({material.checkpoint.sha256[:12]}…), is of "
            f"{str(hashes[0])[:12]}… or of another adapter; restore what was made of this one"
        )
    result = cuts.again(copied(given), made)
    model = merged(result.model, folder) if (folder / ADAPTER).is_file() else result.model
    return replace(result, model=model.eval(), report=result.report | report, chosen=chosen)
