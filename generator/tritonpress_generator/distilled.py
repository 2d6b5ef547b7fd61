"""Runs a recipe's passes for the training among them, alone or under torchrun; a build then finds it done."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from tritonpress_generator import cuts
from tritonpress_generator import recipe as recipes
from tritonpress_generator.checkpoint import CUTS
from tritonpress_generator.compression import Compressed, Material
from tritonpress_generator.errors import InputError
from tritonpress_generator.first_checks import check_distills, check_out
from tritonpress_generator.model_card import distilled_card
from tritonpress_generator.passes.restore import adapter_digest
from tritonpress_generator.progress import Progress
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.training.distributed import World
from tritonpress_generator.workload import Workload


def distill(
    recipe_path: Path, work: Path, data: Path | None, world: World, *, out: Path | None = None
) -> dict[str, Any]:
    """Returns what the recipe's last `distill` has done; its state lies in `work`, where a build finds it.

    Args:
        recipe_path: The recipe.
        work: Gets the state, from which a killed run goes on.
        data: The folder of the data files; default: the recipe's.
        world: The processes that train together.
        out: Gets the result as masks and low-rank differences to the checkpoint, for `passes: [{restore: …}]`.

    Raises:
        InputError: The recipe has no such pass, its result cannot be written so, or the checkpoint or the data is at
            fault.
    """
    say = Progress(shown=world.writes)
    recipe = recipes.load(recipe_path)
    check_distills((stage.word for stage in recipe.passes), path=recipe_path)
    if out is not None:
        check_out("distill", out)
        _check_writable(recipe, out)
    workload = Workload.load(recipe, say)
    material = replace(workload.material(data, work), world=world)
    *_, (_, compressed, _) = workload.passed(material, say)
    if out is not None and world.writes:
        say.stage(f"differences {out}")
        _write(out, compressed, material)
    say.done()
    report: dict[str, Any] = compressed.report["distill"]
    return report


def _check_writable(recipe: Recipe, out: Path) -> None:
    """Refuses passes whose result is more than masks and low-rank differences, before hours are spent.

    So it does a folder whose content the passes begin with: it would be lost, and the training no longer be found done.
    """
    last = recipe.passes[-1]
    if last.word != "distill" or last.config.lora is None:
        raise InputError(
            f"{recipe.path}: passes: the last must be distill with lora for --out, is {last.word}; what is written are "
            "masks and low-rank differences"
        )
    leaving = {"crop", "prune"} | ({"restore"} if last.config.from_checkpoint else set())
    for stage in recipe.passes[:-1]:
        if stage.word not in leaving or getattr(stage.config, "reconstruct", False):
            raise InputError(
                f"{recipe.path}: passes: {stage.word} must leave the weights as they are for --out (prune: "
                "{reconstruct: false}, crop; restore: with distill's from_checkpoint: true); what is written are masks "
                "and low-rank differences"
            )
        if stage.word == "restore" and recipe.file(stage.config.folder).resolve() == out.resolve():
            raise InputError(f"--out {out} must be another folder than passes.restore's, which training begins with")


def _write(out: Path, compressed: Compressed, material: Material) -> None:
    """Writes what `passes/restore.py` reads."""
    if compressed.adapter is None:
        raise TypeError("a distilled model must have its adapter")
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "checkpoint": [material.checkpoint.sha256, material.checkpoint.adapter_sha256],
        "cuts": cuts.written(compressed.cuts),
        "chosen": dict(compressed.chosen),
        "report": compressed.report,
        "adapter": adapter_digest(compressed.adapter),
    }
    # First: until the adapter is as it says, nobody restores from there.
    (out / CUTS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for path in compressed.adapter.iterdir():
        shutil.copyfile(path, out / path.name)
    (out / "README.md").write_text(
        distilled_card(material.recipe, material.folder, compressed.report), encoding="utf-8"
    )
