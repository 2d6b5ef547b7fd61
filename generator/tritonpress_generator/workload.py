"""A recipe's model as it is before anything is done to it, with what asks it and what scores its answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tritonpress_generator import calibration_texts, export
from tritonpress_generator.answering import Answers, Encoder, Texts, asked, encoded, make_encoder
from tritonpress_generator.checkpoint import Checkpoint, resolve
from tritonpress_generator.compression import Compressed, Material
from tritonpress_generator.forms import Source
from tritonpress_generator.infer import Infer
from tritonpress_generator.kept import NOTHING, Kept
from tritonpress_generator.positions import check_length
from tritonpress_generator.pretrained import encoder_of, load_model, load_tokenizer
from tritonpress_generator.progress import Progress
from tritonpress_generator.recipe import Recipe, Stage
from tritonpress_generator.scores import AGREEMENT, Scorer, Scores, means
from tritonpress_generator.signature import Signature


@dataclass(frozen=True)
class Workload:
    """What a recipe names, loaded."""

    recipe: Recipe
    data: Any
    """The task's labelled data."""
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    signature: Signature
    baseline: Infer
    """The checkpoint in torch, FP32."""
    model: Any
    """Of `transformers`: the checkpoint's, or what the passes have made of it."""
    infer: Infer
    """That in torch, FP32."""
    encoder: Encoder
    postprocessor: Any
    """The task's, as it is served."""

    @classmethod
    def load(cls, recipe: Recipe, say: Progress) -> Workload:
        """Returns the workload of `recipe`.

        Raises:
            InputError: The checkpoint or the data is at fault.
        """
        task = recipe.task
        data = task.module.load_data(recipe)
        say.stage(f"checkpoint {recipe.checkpoint.source}")
        checkpoint = resolve(recipe.checkpoint, base=recipe.folder)
        tokenizer = load_tokenizer(checkpoint)
        model = load_model(checkpoint, task.module.AUTO_CLASS)
        _check_served(recipe, model)
        head, signature = task.module.head(model, checkpoint, task.config)
        baseline = export.torch_infer(head, signature)
        postprocessor = task.module.postprocessor(recipe, baseline, signature, tokenizer, data, checkpoint)
        encoder = make_encoder(recipe, signature, tokenizer)
        return cls(recipe, data, checkpoint, tokenizer, signature, baseline, model, baseline, encoder, postprocessor)

    def material(self, folder: Path | None = None, work: Path | None = None) -> Material:
        """Returns what passes may measure and train with.

        Args:
            folder: Has the recipe's labelled examples; default: the recipe's.
            work: Where trainings keep their states.
        """
        original = Compressed(self.model, self.tokenizer)
        return Material(self.recipe, self.checkpoint, original, folder or self.recipe.folder, work)

    def passed(self, material: Material, say: Progress) -> Iterator[tuple[Stage, Compressed, Workload]]:
        """Yields what each of the recipe's passes has made of the model.

        Args:
            material: Of the workload as it is.
            say: Says which pass it is at.

        Raises:
            InputError: A pass cannot be applied to this model, or lacks examples.
        """
        result = material.original
        for name, stage in zip(self.recipe.pass_names, self.recipe.passes, strict=True):
            say.stage(f"pass: {name}")
            result = stage.module.apply(result, stage.config, material)
            _check_served(self.recipe, result.model)
            yield stage, result, self.changed(result)

    def changed(self, compressed: Compressed) -> Workload:
        """Returns the workload with another model; what it answers is compared with what the checkpoint does."""
        task = self.recipe.task
        head, signature = task.module.head(compressed.model, self.checkpoint, task.config)
        infer = export.torch_infer(head, signature)
        postprocessor = self.postprocessor
        # A threshold or a temperature is the model's own: chosen by the pass, or on what the recipe names for that.
        if compressed.chosen or getattr(self.data, "held_out", None):
            checkpoint = replace(self.checkpoint, chosen_anew=compressed.chosen or self.checkpoint.chosen_anew)
            arguments = (infer, signature, compressed.tokenizer, self.data, checkpoint)
            postprocessor = task.module.postprocessor(self.recipe, *arguments)
        return replace(
            self,
            postprocessor=postprocessor,
            tokenizer=compressed.tokenizer,
            signature=signature,
            model=compressed.model,
            infer=infer,
            encoder=make_encoder(self.recipe, signature, compressed.tokenizer),
        )

    def answers(self, infer: Infer) -> Answers:
        """Returns the public answers of `infer` to the labelled data; each sequence is asked alone."""
        return asked(infer, self.signature, self.encoder, self.postprocessor)(self.data.inputs)

    def metrics(self, answers: Answers) -> dict[str, float]:
        """Returns the task's metrics of public answers to the labelled data."""
        return self.scores(answers).metrics

    def scores(self, answers: Answers, baseline: Answers | None = None) -> Scores:
        """Returns what public answers to the labelled data score; their agreement with those of the `baseline` too."""
        return scores_of(self.recipe, self.data, answers, baseline)

    def samples(self) -> Texts:
        """Returns texts that stand for what will be asked.

        Raises:
            InputError: The recipe's samples cannot be read, or one of them not be served.
        """
        return calibration_texts.samples(self.recipe, self.encoder, self.data)

    def source(self, kept: Kept = NOTHING, material: Material | None = None) -> Source:
        """Returns what the forms of the model are made of.

        Args:
            kept: What earlier builds have computed.
            material: Has labelled examples for graph passes, to calibrate and to measure on; default: the recipe's
                folder has.

        Raises:
            InputError: As `samples`, or there are too few texts to calibrate on, or one of them cannot be served.
        """
        samples = encoded(self.encoder, self.samples())
        material = material or self.material()
        calibration = calibration_texts.choose(self.recipe, self.encoder, self.data, material.folder)
        score = partial(material.score, tokenizer=self.tokenizer)
        return Source(
            self.checkpoint,
            self.tokenizer,
            self.model,
            self.infer,
            calibration.sequences,
            calibration.entry,
            samples,
            score,
            material.held_out_hash,
            kept,
        )


def scores_of(recipe: Recipe, data: Any, answers: Answers, baseline: Answers | None) -> Scores:
    """Returns what public answers to the task's `data` score, and their agreement with those of the `baseline`."""
    task = recipe.task.module
    scorer: Scorer = task.scorer(data, answers) if recipe.gate.labelled else means({})
    count = len(next(iter(answers.values())))
    if baseline is None:
        return Scores(scorer, count, task.MOST)
    agreement = means({AGREEMENT: task.agreement(data, answers, baseline)})
    return Scores(lambda rows: scorer(rows) | agreement(rows), count, task.MOST)


def _check_served(recipe: Recipe, model: Any) -> None:
    """Refuses a model that has fewer positions than what is served may have tokens."""
    check_length(recipe.serve.max_length, encoder_of(model), where=f"{recipe.path}: serve.max_length")
