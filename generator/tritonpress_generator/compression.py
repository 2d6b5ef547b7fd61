"""What passes work on, and what they may measure and train with."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from tritonpress_generator import named_files
from tritonpress_generator.checkpoint import Checkpoint
from tritonpress_generator.errors import InputError
from tritonpress_generator.examples import Examples, answered, collate, named
from tritonpress_generator.infer import Infer
from tritonpress_generator.machine import processor, versions
from tritonpress_generator.positions import check_length
from tritonpress_generator.pretrained import encoder_of
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.sampling import spread
from tritonpress_generator.signature import Signature
from tritonpress_generator.structure import depth
from tritonpress_generator.training.distributed import ALONE, World
from tritonpress_generator.training.loop import Feature


@dataclass(frozen=True)
class Compressed:
    """A model on its way through the passes."""

    model: Any
    """Of `transformers`, with the task's head; in FP32 and eval mode."""
    tokenizer: Tokenizer
    report: dict[str, Any] = field(default_factory=dict)
    """What each pass has done, for the manifest."""
    original_ids: tuple[int, ...] | None = None
    """The original's ids of the tokenizer's tokens, in the order of their ids; None: the same."""
    cuts: tuple[tuple[str, Any], ...] = ()
    """What was taken out, in order (`cuts.py`)."""
    history: tuple[str, ...] = ()
    """What has determined the weights beside the checkpoint and the cuts, in order: of a pass that changes weights, its
    settings or a hash."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """What was chosen anew for the changed model on held-out examples: a threshold, a temperature."""
    adapter: Path | None = None
    """What was learnt on top of the cuts, where it was by low-rank adapters: their folder."""

    @property
    def size_bytes(self) -> int:
        """Of the model's weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())


@dataclass(frozen=True)
class Material:
    """What passes may use: the task's labelled examples, never those of the gate, and the model as it was."""

    recipe: Recipe
    checkpoint: Checkpoint
    original: Compressed
    folder: Path
    """Of the data."""
    work: Path | None = None
    """Where trainings keep their states; None: nowhere, and one that is killed begins anew."""
    world: World = ALONE
    """The processes that train together."""
    seed: int = 0
    _decisive: dict[int, Sequence[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Of the held-out examples that decide every so many, as a compressed model is asked them."""

    @cached_property
    def examples(self) -> Examples:
        """The labelled examples.

        Raises:
            InputError: The recipe names none, or they cannot be read.
        """
        return Examples.load(self.recipe, self.folder)

    def head(self, model: Any) -> tuple[torch.nn.Module, Signature]:
        """Returns the task's model on `model`, with which it shares its weights, and what it reads and gives."""
        head, signature = self.recipe.task.module.head(model, self.checkpoint, self.recipe.task.config)
        return head, signature

    def features(self, tokenizer: Tokenizer, most: int, *, model: Any = None, as_served: bool = False) -> list[Feature]:
        """Returns the sequences of at most `most` training examples, drawn by the seed; a long one may have several.

        The first ones are those of fewer examples.

        Args:
            tokenizer: Of what is to read them.
            most: How many examples.
            model: What is to read them; default: the original.
            as_served: Whether the losses on them are those of a compressed model that is served: beside what the
                original has answered once for all, the items of a catalogue.

        Raises:
            InputError: There are no examples, one of them cannot be read, or they may have more tokens than the model
                has positions.
        """
        encoder = encoder_of(self.original.model if model is None else model)
        length = self.recipe.finetune.config.max_length or 0
        check_length(length, encoder, where=f"{self.recipe.path}: finetune.max_length")
        training = self.examples.training
        order = np.random.default_rng(self.seed).permutation(len(training))[:most]
        drawn: Sequence[Any] = [training[i] for i in order.tolist()]
        _, signature = self.head(self.original.model)
        features: list[Feature] = self.recipe.finetune.module.features(
            self._as_served(drawn) if as_served else drawn, self.recipe, tokenizer, signature, self.settings
        )
        return features

    def _as_served(self, examples: Sequence[Any]) -> Sequence[Any]:
        """Returns `examples` as a compressed model is asked them."""
        from tritonpress_generator.export import torch_infer  # brings transformers, which only a model needs

        module, (head, signature) = self.recipe.finetune.module, self.head(self.original.model)
        asked: Sequence[Any] = module.as_served(
            examples, torch_infer(head, signature), signature, self.recipe, self.original.tokenizer
        )
        return asked

    def batches(self, features: Sequence[Feature], size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yields `features` in batches of like length, `(size, longest)`."""
        order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]))
        for start in range(0, len(order), size):
            yield collate([features[i] for i in order[start : start + size]])

    def losses(self, head: Callable[..., Any], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the task's loss of each example of `batch`, FP32 `(batch,)`."""
        module = self.recipe.finetune.module
        losses: torch.Tensor = module.losses(module.outputs(head, batch), batch, ALONE)
        return losses

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the model's config says of its answers: the labels.

        A threshold or a temperature was chosen for the checkpoint, and is no changed model's.
        """
        return {"id2label": getattr(self.original.model.config, "id2label", None)}

    def chosen(self, model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
        """Returns what the task chooses for `model` on the held-out examples: a threshold, a temperature.

        Raises:
            InputError: There are no examples, or one of them cannot be read.
        """
        from tritonpress_generator.export import torch_infer  # brings transformers, which only a model needs

        module, recipe = self.recipe.finetune.module, self.recipe
        examples = self.examples.held_out
        head, signature = self.head(model)
        infer = torch_infer(head.eval(), signature)
        answers = answered(infer, signature, examples, recipe, tokenizer, self.world)
        chosen: dict[str, Any] = module.chosen(examples, answers, recipe, self.settings)
        return chosen

    def held_out_hash(self) -> str:
        """Returns what says all that `score` depends on beside the model: recipe, engine, files, the original.

        Raises:
            InputError: There are none, or they cannot be read.
        """
        # Not its text, since the recipe that a search writes of a candidate has comments and another folder.
        raw = {name: value for name, value in self.recipe.raw.items() if name not in {"search", "folder"}}
        engine = [processor(), versions() | self.recipe.engine.module.versions()]
        digest = hashlib.sha256(json.dumps([raw, engine], sort_keys=True).encode() + repr(self.settings).encode())
        digest.update(named_files.digest(self.recipe, self.folder).encode())
        checkpoint = self.checkpoint
        files = named_files.checkpoint_digest(checkpoint.folder, checkpoint.adapter)
        digest.update(f"{checkpoint.sha256} {checkpoint.adapter_sha256} {files}".encode())
        for file in named(self.recipe).validation:
            path = self.folder / file
            try:
                digest.update(path.read_bytes())
            except OSError as exc:
                raise InputError(f"{path}: cannot be read ({exc}); give the examples' folder with --data") from exc
        return digest.hexdigest()

    def decisive(self, most: int) -> Sequence[Any]:
        """Returns at most `most` of the held-out examples that decide, spread over all, as `score` asks them.

        Raises:
            InputError: There are no examples.
        """
        examples = self.recipe.finetune.module.deciding(self.examples.held_out, self.recipe)
        count = min(most, len(examples))
        if count not in self._decisive:
            self._decisive[count] = self._as_served(spread(examples, count))
        return self._decisive[count]

    def score(self, infer: Infer, tokenizer: Tokenizer, most: int = 1000) -> float:
        """Returns the metric that decides in training, of `infer` on held-out examples; higher is better.

        It is of `infer` as it is served in the place of the original: items of a catalogue are embedded by that one.

        Args:
            infer: Takes a padded batch.
            tokenizer: Of what it answers.
            most: How many examples are asked at most, spread over all.

        Raises:
            InputError: There are no examples, or one of them cannot be read.
        """
        module, recipe = self.recipe.finetune.module, self.recipe
        examples = self.decisive(most)
        _, signature = self.head(self.original.model)
        answers = answered(infer, signature, examples, recipe, tokenizer, self.world)
        judged = module.judge(examples, answers, recipe, self.settings)(np.arange(len(examples)))
        return float(judged[module.METRIC])


def original_layers(compressed: Compressed) -> list[int]:
    """Returns which of the original's layers a model has left."""
    kept: list[int] | None = None
    for name, left in compressed.cuts:
        if name == "layers":
            kept = list(left) if kept is None else [kept[layer] for layer in left]
    return list(range(depth(compressed.model))) if kept is None else kept


def copied(compressed: Compressed) -> Compressed:
    """Returns a copy that a pass may change."""
    return replace(compressed, model=copy.deepcopy(compressed.model).eval(), report=dict(compressed.report))
