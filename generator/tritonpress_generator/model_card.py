"""The model card of what was trained: from what, how, and how good it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from tritonpress_generator.checkpoint import ADAPTER
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.recipe_text import DataConfig
from tritonpress_generator.training.loop import Progress
from tritonpress_generator.written import portable

_PACKAGES = ("torch", "transformers", "peft", "tokenizers")


@dataclass(frozen=True)
class Score:
    """A metric with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Returns all three, with as many digits as tell."""
        return f"{self.value:#.4g} [{self.low:#.4g}, {self.high:#.4g}]"


def model_card(
    recipe: Recipe,
    folder: Path,
    scores: Mapping[str, Mapping[str, Score]],
    progress: Progress,
    chosen: Mapping[str, Any],
) -> str:
    """Returns the model card in Markdown; there is nothing of this machine in it.

    Args:
        recipe: What was asked for.
        folder: Of the data.
        scores: By data set and metric.
        progress: How the training went.
        chosen: What was chosen on the held-out examples.
    """
    config, data = recipe.finetune.config, recipe.data
    if data is None:
        raise ValueError("the recipe must have data")
    metrics = list(next(iter(scores.values())))
    rows = [
        f"| {name} | {'validation' if name in data.validation else 'test'} | "
        + " | ".join(str(row[metric]) for metric in metrics)
        + " |"
        for name, row in scores.items()
    ]
    files = "\n".join(_files(data, folder))
    what = "A LoRA adapter and its head" if config.lora else "A checkpoint"
    settings = yaml.safe_dump(config.model_dump(), sort_keys=False)
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return f"""# {recipe.name}

{what} for {recipe.task.word.replace("_", " ")}, trained on {portable(recipe.checkpoint.source)} by

    tritonpress finetune {recipe.path.name} --data DATA

| file | use | SHA-256 |
| --- | --- | --- |
{files}

Scores in FP32 of the weights as they lie here, with what was chosen (below), and the 95 % interval (percentile
bootstrap over the examples); the weights are those of step {progress.best_step} of {progress.step}, the best on the
validation files:

| data | use | {" | ".join(metrics)} |
| --- | --- | {" | ".join("---" for _ in metrics)} |
{chr(10).join(rows)}

Chosen on the validation files: {", ".join(f"{name} {value:.4f}" for name, value in chosen.items()) or "nothing"}.
Training took {progress.seconds / 60:.0f} minutes. Versions: {versions}. Settings:

```yaml
{settings}```
"""


def distilled_card(recipe: Recipe, folder: Path, report: Mapping[str, Any]) -> str:
    """Returns the model card of masks and low-rank differences.

    Args:
        recipe: What was asked for.
        folder: Of the data.
        report: What the passes have done.
    """
    if recipe.data is None:
        raise ValueError("the recipe must have data")
    done = report["distill"]
    begun = " That is less: the weights are those after the cuts, with the differences that training began with."
    given_back = begun if done["given_back"] else ""
    settings = [{stage.word: _portable(stage.config.model_dump())} for stage in recipe.passes]
    passes = yaml.safe_dump(settings, sort_keys=False)
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    files = "\n".join([*_restored(recipe), *_files(recipe.data, folder)])
    return f"""# {recipe.name}, compressed

Masks and low-rank differences to {portable(recipe.checkpoint.source)} (with the recipe's adapter, if it has one), by

    tritonpress distill {recipe.path.name} --data DATA --out FOLDER

for `passes: [{{restore: {{folder: FOLDER}}}}]`.

| file | use | SHA-256 |
| --- | --- | --- |
{files}

`{done["metric"]}` on the validation files, on which the weights were chosen: {done["before"]:.4f} after the cuts,
{done["after"]:.4f} after {done["steps"]} steps of training in {done["minutes"]:.1f} minutes.{given_back}
Versions: {versions}.

```yaml
{passes}```
"""


def _portable(settings: Any) -> Any:
    """Returns a pass's settings with the names of this machine's folders and files in place of their paths."""
    if isinstance(settings, dict):
        return {key: _portable(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_portable(value) for value in settings]
    return portable(settings) if isinstance(settings, str) else settings


def _restored(recipe: Recipe) -> list[str]:
    """Returns the rows of a table of the adapters that were gone on with."""
    folders = [recipe.file(stage.config.folder) for stage in recipe.passes if stage.word == "restore"]
    return [_row(folder.name, "restored", folder / ADAPTER) for folder in folders if (folder / ADAPTER).is_file()]


def _files(data: DataConfig, folder: Path) -> list[str]:
    """Returns the rows of a table of the data's files."""
    uses = ("train", "validation", "test")
    return [_row(name, use, folder / name) for use in uses for name in getattr(data, use)]


def _row(name: str, use: str, path: Path) -> str:
    return f"| {name} | {use} | {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}… |"
