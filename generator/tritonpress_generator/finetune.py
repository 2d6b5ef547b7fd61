"""Training, read top to bottom: recipe and labelled examples to a checkpoint or an adapter, with its model card."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import peft
import torch
from safetensors.torch import save_file

from tritonpress_generator import export
from tritonpress_generator import recipe as recipes
from tritonpress_generator.checkpoint import load_model, load_tokenizer, resolve
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Infer
from tritonpress_generator.model_card import Score, model_card
from tritonpress_generator.progress import Progress
from tritonpress_generator.recipe import LoraConfig, Recipe
from tritonpress_generator.training import loop
from tritonpress_generator.training.distributed import World

_RESAMPLES = 1000
_SETTINGS = "tritonpress.json"


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
    if recipe.finetune is None:
        raise InputError(f"{recipe_path}: must have 'finetune' to be trained; add it, with train and validation files")
    task, module, config = recipe.task, recipe.finetune.module, recipe.finetune.config
    folder = recipe.path.parent if data is None else data

    say.stage("data")
    training, held_out = (
        module.augmented(module.load([folder / file for file in files], recipe), config)
        for files in (config.train, config.validation)
    )
    tests = {file: module.load([folder / file], recipe) for file in (*config.validation, *config.test)}

    say.stage(f"checkpoint {recipe.checkpoint.source}")
    checkpoint = resolve(recipe.checkpoint.model_copy(update={"adapter": None}), base=recipe.path.parent)
    tokenizer = load_tokenizer(checkpoint)
    torch.manual_seed(config.seed)  # for the new head
    of_head = module.model_settings(training, recipe)
    model = load_model(checkpoint, task.module.AUTO_CLASS, new_head=True, settings=of_head)
    _set_dropout(model, config.dropout)
    adapted = None if config.lora is None else _with_adapters(model, config.lora)
    head, signature = task.module.head(model, checkpoint, task.config)
    features = module.features(training, recipe, tokenizer, signature)
    _freeze_what_is_not_read(head, module, features[0])

    def answers(infer: Infer, examples: Sequence[Any]) -> list[Any]:
        """Returns what the model answers to each of `examples`, of which each process asks its share."""
        part = module.answers(infer, signature, examples[world.rank :: world.size], recipe, tokenizer)
        shares = world.gather(part)
        return [shares[i % world.size][i // world.size] for i in range(len(examples))]

    def evaluate() -> dict[str, float]:
        head.eval()
        metrics: dict[str, float] = module.score(
            held_out, answers(export.torch_infer(head, signature), held_out), recipe, of_head
        )
        return metrics

    precision = "bf16" if loop.computes_in_bf16(config, world.device) else "fp32"
    weights = sum(parameter.numel() for parameter in head.parameters() if parameter.requires_grad)
    say.stage(f"training: {len(training)} examples, {len(features)} sequences, {weights:,} weights, {precision}")
    say.pause()
    started = time.monotonic()
    fingerprint = _fingerprint(config.model_dump_json(), checkpoint.sha256, features)
    trained = loop.Trained(head, features, _collate, module.losses, evaluate, module.METRIC, fingerprint)
    progress = loop.train(trained, config, out / "training", world)
    minutes = (time.monotonic() - started) / 60

    say.stage("scores of what is written")
    head.eval()
    chosen = module.chosen(export.torch_infer(head, signature), signature, held_out, recipe, tokenizer, of_head)
    if world.writes:
        _write(out, model, adapted, chosen, recipe.checkpoint.source)
        if adapted is None:
            tokenizer.save(str(out / "tokenizer.json"))
    world.gather(None)  # so that it is there for all
    scores = _scores(recipe, out, tests, of_head | chosen, answers)
    if world.writes:
        card = model_card(recipe, folder, scores, progress, chosen, minutes=minutes)
        (out / "README.md").write_text(card, encoding="utf-8")
    say.done()
    return Finetuned(out, progress, scores)


def _scores(
    recipe: Recipe,
    out: Path,
    tests: Mapping[str, Sequence[Any]],
    settings: Mapping[str, Any],
    answers: Callable[[Infer, Sequence[Any]], list[Any]],
) -> dict[str, dict[str, Score]]:
    """Returns the metrics of what was written into `out`, on each of `tests`."""
    if recipe.finetune is None:
        raise ValueError("the recipe must have finetune")
    module, task = recipe.finetune.module, recipe.task
    folder = str(out.resolve())
    config = recipes.CheckpointConfig(source=folder)
    if recipe.finetune.config.lora is not None:
        config = recipe.checkpoint.model_copy(update={"adapter": folder})
    written = resolve(config, base=recipe.path.parent)
    head, signature = task.module.head(load_model(written, task.module.AUTO_CLASS), written, task.config)
    infer = export.torch_infer(head, signature)

    def score(part: Sequence[Any], given: Sequence[Any]) -> dict[str, float]:
        metrics: dict[str, float] = module.score(part, given, recipe, settings)
        return metrics

    return {file: _with_intervals(score, part, answers(infer, part)) for file, part in tests.items()}


def _set_dropout(model: Any, probability: float | None) -> None:
    if probability is None:
        return
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
        elif isinstance(getattr(module, "dropout_prob", None), float):
            module.dropout_prob = probability


def _with_adapters(model: Any, config: LoraConfig) -> peft.PeftModel:
    """Returns `model` with adapters on every linear layer of its encoder, which, with its head, are what is trained."""
    prefix = f"{model.base_model_prefix}."
    own = [
        name for name, child in model.named_children() if name != model.base_model_prefix and list(child.parameters())
    ]
    has_head = isinstance(getattr(model, model.base_model_prefix, None), torch.nn.Module)
    linear = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    targets = [name for name in linear if not has_head or name.startswith(prefix)]
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=targets,
        modules_to_save=own if has_head else None,
    )
    adapted = peft.get_peft_model(model, settings)
    if not isinstance(adapted, peft.PeftModel):
        raise TypeError("peft must give a model of one adapter")
    return adapted


def _freeze_what_is_not_read(head: torch.nn.Module, module: ModuleType, feature: loop.Feature) -> None:
    """Freezes the weights that no answer depends on, such as a pooler that nobody asks."""
    module.losses(head, _collate([feature]), World(0, 1, torch.device("cpu"))).sum().backward()
    for parameter in head.parameters():
        if parameter.requires_grad:
            parameter.requires_grad = parameter.grad is not None
        parameter.grad = None


def _collate(features: Sequence[loop.Feature]) -> dict[str, torch.Tensor]:
    """Returns the features' values by name, lists padded with 0 on the right."""
    batch = {}
    for name, first in features[0].items():
        values = [feature[name] for feature in features]
        if isinstance(first, list):
            width = max(map(len, values))
            values = [value + [0] * (width - len(value)) for value in values]
        batch[name] = torch.tensor(values)
    return batch


def _fingerprint(*parts: Any) -> str:
    """Returns a hash of all that determines a run."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()


def _write(out: Path, model: Any, adapted: peft.PeftModel | None, chosen: dict[str, Any], source: str) -> None:
    """Writes the weights, an adapter's in FP16, and what was chosen on the held-out examples."""
    if adapted is None:
        model.save_pretrained(out, safe_serialization=True)
    else:
        state = peft.get_peft_model_state_dict(adapted)
        save_file(
            {name: tensor.half().contiguous().cpu() for name, tensor in state.items()},
            out / "adapter_model.safetensors",
        )
        settings = adapted.peft_config["default"]
        settings.base_model_name_or_path = source
        settings.inference_mode = True
        settings.save_pretrained(str(out))
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(out)
    (out / _SETTINGS).write_text(json.dumps(chosen, indent=2) + "\n", encoding="utf-8")


def _with_intervals(
    score: Callable[[Sequence[Any], Sequence[Any]], dict[str, float]], examples: Sequence[Any], answers: Sequence[Any]
) -> dict[str, Score]:
    """Returns the metrics with the 95 % interval of resampled examples (percentile bootstrap; Efron 1979)."""
    generator = np.random.default_rng(0)
    values = score(examples, answers)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(_RESAMPLES):
        chosen = generator.integers(len(examples), size=len(examples)).tolist()
        for name, value in score([examples[i] for i in chosen], [answers[i] for i in chosen]).items():
            drawn[name].append(value)
    bounds = {name: np.percentile(drawn[name], [2.5, 97.5]) for name in values}
    return {name: Score(value, float(bounds[name][0]), float(bounds[name][1])) for name, value in values.items()}
