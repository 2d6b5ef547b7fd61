"""Runs a recipe's passes for the training among them, alone or under torchrun; a build then finds it done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tritonpress_generator import recipe as recipes
from tritonpress_generator.errors import InputError
from tritonpress_generator.progress import Progress
from tritonpress_generator.training.distributed import World
from tritonpress_generator.workload import Workload


def distill(recipe_path: Path, work: Path, data: Path | None, world: World) -> dict[str, Any]:
    """Returns what the recipe's last `distill` has done; its state lies in `work`, where a build finds it.

    Args:
        recipe_path: The recipe.
        work: Gets the state, from which a killed run goes on.
        data: The folder of the data files; default: the recipe's.
        world: The processes that train together.

    Raises:
        InputError: The recipe has no such pass, or the checkpoint or the data is at fault.
    """
    say = Progress(shown=world.writes)
    recipe = recipes.load(recipe_path)
    if not any(stage.word == "distill" for stage in recipe.passes):
        raise InputError(f"{recipe_path}: passes: must have distill to be distilled; add it behind what it is to mend")
    workload = Workload.load(recipe, say)
    material = replace(workload.material(data, work), world=world)
    report: dict[str, Any] = {}
    for stage, compressed, _ in workload.passed(material, say):
        if stage.word == "distill":
            report = compressed.report["distill"]
    say.done()
    return report
