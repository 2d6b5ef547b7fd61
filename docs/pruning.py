"""Says what a task's metric is after pruning without training, at several shares; a table of docs/measurements.md.

HF_HUB_OFFLINE=1 .venv/bin/python docs/pruning.py generator/recipes/classification.yaml --data DATA --dataset DEV
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from tritonpress_generator import recipe as recipes
from tritonpress_generator.compression import Compressed, Material
from tritonpress_generator.passes import prune
from tritonpress_generator.progress import Progress
from tritonpress_generator.table import render
from tritonpress_generator.workload import Workload

SHARES = (0.2, 0.3, 0.4, 0.5)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Says what a task's metric is after pruning without training.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the training examples")
    parser.add_argument("--dataset", type=Path, help="labelled data that is scored (default: the gate's)")
    parser.add_argument("--samples", type=int, default=2048, help="training examples that show what matters")
    parser.add_argument("--length", type=int, default=128, help="tokens for which multiplications are counted")
    options = parser.parse_args()
    recipe = recipes.load(options.recipe)
    if options.dataset:
        gate = recipe.gate.model_copy(update={"dataset": str(options.dataset.resolve())})
        recipe = replace(recipe, gate=gate)
    workload = Workload.load(recipe, Progress())
    original = Compressed(workload.model, workload.tokenizer)
    material = Material(recipe, workload.checkpoint, original, options.data)
    baseline = workload.answers(workload.infer)
    before = workload.scores(baseline, baseline).metrics
    rows = [["0 %", "", *(f"{value:.4f}" for value in before.values()), "", ""]]
    for share in SHARES:
        for reconstruct in (False, True):
            config = prune.Config(flops=share, samples=options.samples, length=options.length, reconstruct=reconstruct)
            start = time.monotonic()
            result = prune.apply(original, config, material)
            seconds = time.monotonic() - start
            changed = workload.changed(result)
            metrics = changed.scores(changed.answers(changed.infer), baseline).metrics
            report = result.report["prune"]
            rows.append(
                [
                    f"{1 - report['products']:.0%}",
                    "least squares" if reconstruct else "cut",
                    *(f"{value:.4f}" for value in metrics.values()),
                    f"{seconds:.0f}",
                    f"heads {report['heads']}, ffn {report['ffn']}",
                ]
            )
            print(render(["products less", "", *before, "s", "left"], rows), flush=True)


if __name__ == "__main__":
    main()
