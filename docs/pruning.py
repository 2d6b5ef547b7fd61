"""Says what a task's metric is after pruning at several shares, without training or with it; docs/measurements.md.

    HF_HUB_OFFLINE=1 .venv/bin/python docs/pruning.py generator/recipes/classification.yaml --data DATA --dataset DEV

With `--distilled`, what is cut is trained as the recipe's `distill` says (`--epochs` for fewer) in place of the least
squares: generator/recipes/distill/ has such recipes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tritonpress_generator import recipe as recipes
from tritonpress_generator.compression import Compressed, Material
from tritonpress_generator.passes import distill, prune
from tritonpress_generator.progress import Progress
from tritonpress_generator.table import render
from tritonpress_generator.workload import Workload

SHARES = (0.2, 0.3, 0.4, 0.5)


def main() -> None:
    """Prints the table after each share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the training examples")
    parser.add_argument("--dataset", type=Path, help="labelled data that is scored (default: the gate's)")
    parser.add_argument("--samples", type=int, default=2048, help="training examples that show what matters")
    parser.add_argument("--length", type=int, default=128, help="tokens for which multiplications are counted")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the multiplications, to be cut")
    parser.add_argument("--distilled", action="store_true", help="train what is cut, as the recipe says")
    parser.add_argument("--epochs", type=int, help="of the training (default: the recipe's)")
    options = parser.parse_args()
    recipe = recipes.load(options.recipe)
    if options.dataset:
        gate = recipe.gate.model_copy(update={"dataset": str(options.dataset.resolve())})
        recipe = replace(recipe, gate=gate)
    trained = _training(recipe) if options.distilled else None
    if options.distilled and trained is None:
        parser.error(f"--distilled needs a recipe with a pass `distill`, {recipe.name} has none; see recipes/distill")
    if trained and options.epochs:
        trained = trained.model_copy(update={"epochs": options.epochs})
    workload = Workload.load(recipe, Progress())
    original = Compressed(workload.model, workload.tokenizer)
    material = Material(recipe, workload.checkpoint, original, options.data)
    baseline = workload.answers(workload.infer)
    before = workload.scores(baseline, baseline).metrics
    rows = [["0 %", "", *(f"{value:.4f}" for value in before.values()), "", ""]]

    def add(words: str, apply: Callable[..., Compressed], given: Compressed, config: object) -> Compressed:
        start = time.monotonic()
        result = apply(given, config, material)
        seconds = time.monotonic() - start
        changed = workload.changed(result)
        metrics = changed.scores(changed.answers(changed.infer), baseline).metrics
        report = result.report["prune"]
        left = f"heads {report['heads']}, ffn {report['ffn']}"
        cut = f"{1 - report['products']:.0%}"
        rows.append([cut, words, *(f"{value:.4f}" for value in metrics.values()), f"{seconds:.0f}", left])
        print(render(["products less", "", *before, "s", "left"], rows), flush=True)
        return result

    for share in options.shares:
        config = prune.Config(flops=share, samples=options.samples, length=options.length, reconstruct=False)
        cut = add("cut", prune.apply, original, config)
        if trained:
            add("distilled", distill.apply, cut, trained)
        else:
            add("least squares", prune.apply, original, config.model_copy(update={"reconstruct": True}))


def _training(recipe: recipes.Recipe) -> distill.Config | None:
    """Returns how the recipe trains."""
    return next((stage.config for stage in recipe.passes if isinstance(stage.config, distill.Config)), None)


if __name__ == "__main__":
    main()
