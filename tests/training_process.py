"""Trains for recipes, each into `out` beside it, as processes of their own: several together, or one to be killed.

    python training_process.py RECIPE …
    python training_process.py --slowly RECIPE

Slowly, by the command; a state is saved after every step, which takes a while, so that there is something in between.
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
    with world() as processes:
        for recipe in map(Path, arguments):
            finetuning.finetune(recipe, recipe.parent / "out", None, processes)
    return 0


def slowly(recipe: Path) -> int:
    loop._STATE_EVERY_S = 0.0
    saved = loop._State.save

    def save(self: Any, progress: loop.Progress) -> None:
        saved(self, progress)
        time.sleep(0.2)

    loop._State.save = save  # type: ignore[method-assign]
    (recipe.parent / f"pid.{os.environ.get('RANK', '0')}").write_text(str(os.getpid()))
    return cli.main(["finetune", str(recipe), "--out", str(recipe.parent / "out")])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
