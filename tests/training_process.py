"""Trains for recipes, each into `out` beside it, as processes of their own: several together, or one to be killed.

    python training_process.py RECIPE …
    python training_process.py --slowly RECIPE
    python training_process.py --apart RECIPE

Slowly, by the command: a state is saved after every step, which takes a while, and the ninth never ends. Apart, by the
command: each of several processes into a folder of its own, as on hosts that share none.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from tritonpress_generator import cli
from tritonpress_generator import finetune as finetuning
from tritonpress_generator.training import loop
from tritonpress_generator.training.distributed import world


def main(arguments: list[str]) -> int:
    finetuning._RESAMPLES = 40
    if arguments[0] == "--slowly":
        return slowly(Path(arguments[1]))
    if arguments[0] == "--apart":
        recipe = Path(arguments[1])
        return cli.main(["finetune", str(recipe), "--out", str(recipe.parent / f"out.{os.environ['RANK']}")])
    with world() as processes:
        for recipe in map(Path, arguments):
            finetuning.finetune(recipe, recipe.parent / "out", None, processes)
    return 0


def slowly(recipe: Path) -> int:
    loop._STATE_EVERY_S = 0.0
    saved = loop._State.save

    def save(self: Any, progress: loop.Progress) -> None:
        saved(self, progress)
        time.sleep(0.2 if progress.step < 9 else 600)

    loop._State.save = save  # type: ignore[method-assign]
    (recipe.parent / f"pid.{os.environ.get('RANK', '0')}").write_text(str(os.getpid()))
    return cli.main(["finetune", str(recipe), "--out", str(recipe.parent / "out")])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
