"""Training, read top to bottom: recipe and labelled examples to a checkpoint or an adapter, with its model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tritonpress_generator import export, trainable, workplace, written
from tritonpress_generator import recipe as recipes
from tritonpress_generator.checkpoint import Checkpoint, resolve
from tritonpress_generator.errors import InputError
from tritonpress_generator.examples import Examples, answered, collate, finite
from tritonpress_generator.infer import Infer
from tritonpress_generator.model_card import Score, model_card
from tritonpress_generator.pretrained import load_model, load_tokenizer
from tritonpress_generator.progress import Progress
from tritonpress_generator.recipe import Recipe, Stage
from tritonpress_generator.trainable import Trainable
from tritonpress_generator.training import loop
from tritonpress_generator.training.distributed import ALONE, World
from tritonpress_generator.training.fingerprint import fingerprint_of
from tritonpress_generator.training.settings import TRAINING, Precision

_RESAMPLES = 1000
_WHERE = "finetune"
"""The section of a recipe that says how, for messages."""
Metrics = Callable[[NDArray[np.int64]], dict[str, float]]
"""The metrics on those examples that it is given the indices of."""


@dataclass(frozen=True)
class Finetuned:
    """What a training has written."""

    folder: Path
    progress: loop.Progress
    scores: dict[str, dict[str, Score]]
    """By data set and metric, of the weights as they are written."""


def finetune(recipe_path: Path, out: Path, data: Path | None, world: World) -> Finetuned:
    """Returns what was trained as the recipe's `finetune` says, and written into `out`.

    Args:
        recipe_path: The recipe.
        out: Gets an adapter (`finetune.lora`) or a whole checkpoint, its model card, and in `training/` what a killed
            run goes on from, and TensorBoard's files.
        data: The folder of the data files; default: the recipe's.
        world: The processes that train together.

    Raises:
        InputError: The recipe, the checkpoint or the data is at fault.
    """
    say = Progress(shown=world.writes)
    recipe = recipes.load(recipe_path)
    stage = recipe.finetune
    folder = recipe.folder if data is None else data
    written.check_folder(out, stage.config)

    say.stage("data")
    examples = Examples.load(recipe, folder)
    say.stage(f"checkpoint {recipe.checkpoint.source}")
    training = _Training.load(recipe, stage, examples, world)
    if out.resolve() == training.checkpoint.folder.resolve():
        raise InputError(f"--out {out}: must not be the checkpoint that is trained; give another folder")

    say.stage(training.summary)
    say.pause()
    progress = training.train(out / TRAINING)

    say.stage("scores of what is written")
    chosen = training.chosen()
    if world.writes:
        precision: Precision = stage.config.lora.written if stage.config.lora else "fp16"
        arguments = (training.trained, training.tokenizer, training.checkpoint, chosen)
        written.write(out, *arguments, precision=precision)
    world.gather(None)  # so that it is there for all
    scores = training.scores(written.read_back(recipe, out, stage.config), chosen)
    if world.writes:
        card = model_card(recipe, folder, scores, progress, chosen)
        (out / "README.md").write_text(card, encoding="utf-8")
    say.done()
    return Finetuned(out, progress, scores)


@dataclass(frozen=True)
class _Training:
    """What a recipe names to be trained, loaded and checked."""

    recipe: Recipe
    stage: Stage
    examples: Examples
    decisive: Sequence[Any]
    """The held-out examples that decide which weights are the best."""
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    settings: Mapping[str, Any]
    """What the model's config says of the head."""
    trained: Trainable
    features: Sequence[loop.Feature]
    world: World

    @classmethod
    def load(cls, recipe: Recipe, stage: Stage, examples: Examples, world: World) -> _Training:
        module = stage.module
        decisive = module.deciding(examples.held_out, recipe)
        checkpoint = resolve(recipe.checkpoint.model_copy(update={"adapter": None}), base=recipe.folder)
        tokenizer = load_tokenizer(checkpoint)
        settings = module.model_settings(examples.training, recipe)
        trained = trainable.load(recipe, checkpoint, settings, stage.config)
        features = module.features(examples.training, recipe, tokenizer, trained.signature, settings)
        # What would else be found when hours are spent.
        for file, part in examples.scored.items():
            try:
                module.check(part, recipe, trained.signature, tokenizer, settings)
            except InputError as exc:
                raise InputError(f"{file}: {exc}") from exc
        first = collate(features[:1])
        loss = module.losses(module.outputs(trained.head, first), first, ALONE)
        trainable.freeze_what_is_not_read(trained.head, loss.sum())
        return cls(recipe, stage, examples, decisive, checkpoint, tokenizer, settings, trained, features, world)

    @property
    def summary(self) -> str:
        """What is trained, in a line."""
        return (
            f"training: {len(self.examples.training)} examples, {len(self.features)} sequences, "
            f"{self.trained.weights:,} weights, {self._precision}"
        )

    @property
    def _precision(self) -> str:
        return "bf16" if loop.computes_in_bf16(self.stage.config, self.world.device) else "fp32"

    def train(self, folder: Path) -> loop.Progress:
        """Returns how it went."""
        module, config, head = self.stage.module, self.stage.config, self.trained.head
        fingerprint = fingerprint_of(self.recipe, self.checkpoint, config, self.examples, self.features)

        def losses(model: Any, batch: dict[str, torch.Tensor], world: World) -> torch.Tensor:
            of_each: torch.Tensor = module.losses(module.outputs(model, batch), batch, world)
            return of_each

        job = loop.Trained(head, self.features, collate, losses, self._evaluate, module.METRIC, fingerprint, _WHERE)
        return loop.train(job, config, folder, self.world)

    def _evaluate(self) -> dict[str, float]:
        given = self._answers(self._infer(), self.decisive)
        metrics: dict[str, float] = self._judge(self.decisive, given, {})(np.arange(len(self.decisive)))
        return metrics

    def chosen(self) -> dict[str, Any]:
        """Returns what is chosen on the held-out examples, for the weights as they are written."""
        examples = self.examples.held_out
        with workplace.scratch() as folder:
            given = self._answers(self._written(folder), examples)
        chosen: dict[str, Any] = self.stage.module.chosen(examples, given, self.recipe, self.settings)
        return chosen

    def scores(self, checkpoint: Checkpoint, chosen: Mapping[str, Any]) -> dict[str, dict[str, Score]]:
        """Returns the metrics of what was written, by data set."""
        infer = self._loaded(checkpoint)
        return {
            file: _with_intervals(self._judge(part, self._answers(infer, part), chosen), len(part))
            for file, part in self.examples.scored.items()
        }

    def _written(self, folder: Path) -> Infer:
        """Returns the model as it is loaded when it has been written: an adapter is rounded."""
        lora, adapted = self.stage.config.lora, self.trained.adapted
        if lora is None or adapted is None:
            return self._infer()
        written.write_adapter(folder, self.trained.model, adapted, self.checkpoint, precision=lora.written)
        return self._loaded(written.read_back(self.recipe, folder, self.stage.config))

    def _loaded(self, checkpoint: Checkpoint) -> Infer:
        task = self.recipe.task
        head, signature = task.module.head(load_model(checkpoint, task.module.AUTO_CLASS), checkpoint, task.config)
        return finite(export.torch_infer(head.to(self.world.device), signature), where=_WHERE)

    def _infer(self) -> Infer:
        """Returns the model as it is, which refuses to answer with what is no number."""
        return finite(export.torch_infer(self.trained.head.eval(), self.trained.signature), where=_WHERE)

    def _answers(self, infer: Infer, examples: Sequence[Any]) -> list[Any]:
        """Returns what the model answers to each of `examples`, of which each process asks its share."""
        return answered(infer, self.trained.signature, examples, self.recipe, self.tokenizer, self.world)

    def _judge(self, examples: Sequence[Any], answers: Sequence[Any], chosen: Mapping[str, Any]) -> Metrics:
        metrics: Metrics = self.stage.module.judge(examples, answers, self.recipe, {**self.settings, **chosen})
        return metrics


def _with_intervals(metrics: Metrics, examples: int) -> dict[str, Score]:
    """Returns the metrics with the 95 % interval of resampled examples (percentile bootstrap; Efron 1979)."""
    generator = np.random.default_rng(0)
    drawn = [metrics(generator.integers(examples, size=examples)) for _ in range(_RESAMPLES)]
    scores = {}
    for name, value in metrics(np.arange(examples)).items():
        low, high = np.percentile([one[name] for one in drawn], [2.5, 97.5])
        scores[name] = Score(value, float(low), float(high))
    return scores
