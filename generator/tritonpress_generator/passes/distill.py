"""Distillation: the compressed model learns to compute what the original does, on the task's training examples.

It learns from the original's answers (Hinton et al. 2015), from its hidden states, which have the same width (Sun et
al. 2019, "Patient knowledge distillation"; Jiao et al. 2020, "TinyBERT"), and from the relations among the queries, the
keys and the values of the last layer (Wang et al. 2021, "MiniLMv2"), which need no same number of heads. Labels are
optional.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator

from tritonpress_generator import cuts, workplace
from tritonpress_generator.compression import Compressed, Material, copied, original_layers
from tritonpress_generator.examples import collate, finite
from tritonpress_generator.pretrained import encoder_of, merged
from tritonpress_generator.structure import depth, layers, projections
from tritonpress_generator.trainable import begin_with, freeze_what_is_not_read, set_dropout, with_adapters
from tritonpress_generator.training import loop
from tritonpress_generator.training.distances import divergence
from tritonpress_generator.training.distributed import ALONE, World
from tritonpress_generator.training.fake_quantization import fake_quantize
from tritonpress_generator.training.fingerprint import fingerprint_of
from tritonpress_generator.training.settings import TrainingConfig
from tritonpress_generator.written import write_adapter

if TYPE_CHECKING:
    import peft

_OF_TOKENS = ("input_ids", "item_ids")
_RELATION_HEADS = 12
_WHERE = "passes.distill"
"""The section of a recipe that says how, for messages."""


class Config(TrainingConfig):
    outputs: float = Field(default=1.0, ge=0)
    """The weight of the answers' distance."""
    temperature: float = Field(default=2.0, gt=0)
    """What logits are divided by before they are compared."""
    hidden: float = Field(default=1.0, ge=0)
    """The weight of the mean distance of the layers' answers, relative to their mean square."""
    relations: float = Field(default=0.0, ge=0)
    """The weight of the distance of the last layer's relations."""
    labels: float = Field(default=0.0, ge=0)
    """The weight of the task's own loss."""
    samples: int | None = Field(default=None, ge=1)
    """On how many training examples; default: on all."""
    fake_quantize: Literal[7, 8] | None = None
    """Trains with inputs and weights of the encoder's layers as INT8 leaves them, weights of so many bits; adapters are
    merged into these."""
    from_checkpoint: bool = False
    """Whether adapters are differences to the checkpoint, and begin with what was restored before, as near as their
    rank comes to it, so that `distill --out` can write both; else they are added to the weights that come in."""

    @model_validator(mode="after")
    def _learns_something(self) -> Config:
        if not self.outputs + self.hidden + self.relations + self.labels:
            raise ValueError("must learn from outputs, hidden, relations or labels; give one of them a weight")
        if self.fake_quantize is not None and self.lora is not None and self.lora.dropout:
            raise ValueError(
                "fake_quantize computes with merged adapters, of whose inputs lora.dropout drops none; set that 0"
            )
        if self.from_checkpoint and self.lora is None:
            raise ValueError("from_checkpoint is of adapters; give lora, or leave it out")
        return self


def apply(given: Compressed, config: Config, material: Material) -> Compressed:
    """Returns the model with the weights that were the best on the held-out examples, those it came with among them.

    Args:
        given: Is left as it is.
        config: The settings.
        material: Has the examples, the original, and a folder for the training's state.

    Raises:
        InputError: There are no examples, or the loss is no longer finite.
    """
    from tritonpress_generator import export  # brings transformers, which only a model needs

    student, adapted = _student(given, config, material)
    head, signature = material.head(student.model)
    teacher, _ = material.head(material.original.model)
    examples = config.samples or len(material.examples.training)
    features = material.features(given.tokenizer, examples, model=given.model)
    recipe, checkpoint = material.recipe, material.checkpoint
    metric = str(recipe.finetune.module.METRIC)
    fingerprint = fingerprint_of(recipe, checkpoint, config, material.examples, features, given.cuts, given.history)

    def evaluate() -> dict[str, float]:
        infer = finite(export.torch_infer(head.eval(), signature), where=_WHERE)
        return {metric: material.score(infer, given.tokenizer)}

    lesson = _Lesson(config, student, head, teacher, material)
    with nullcontext(material.work) if material.work else workplace.scratch() as work:
        folder = work / f"distill-{fingerprint[:12]}"
        with ExitStack() as stack:
            for part in (head, teacher):
                part.to(material.world.device)
                stack.callback(part.cpu)
            first = {name: value.to(material.world.device) for name, value in collate(features[:1]).items()}
            freeze_what_is_not_read(head, lesson.losses(head, first, ALONE).sum())
            if config.fake_quantize is not None:
                codes = 2 ** (config.fake_quantize - 1) - 1
                stack.callback(fake_quantize(encoder_of(student.model), weight_codes=codes))
            before = evaluate()[metric]  # as all that are compared with it are computed, with `fake_quantize` too
            job = loop.Trained(head, features, collate, lesson.losses, evaluate, metric, fingerprint, _WHERE)
            progress = loop.train(job, config, folder, material.world)
        given_back = progress.best_metric is not None and before > progress.best_metric
        if given_back:
            student, adapted = _student(given, config, material)  # whose adapters are as they began
        model = student.model
        # Only now: `given` may be the original, and is copied as it was before.
        if adapted is not None:
            model = _as_written(student, adapted, config, material, folder / "adapter", given)
    report = {
        "metric": metric,
        "before": before,
        "after": progress.best_metric,
        "given_back": given_back,
        "steps": progress.step,
        "minutes": round(progress.seconds / 60, 4),
    }
    return replace(
        student,
        model=model.eval(),
        report=student.report | {"distill": report},
        history=(*given.history, fingerprint),
        chosen=material.chosen(model, given.tokenizer),
        adapter=folder / "adapter" if adapted is not None and material.work else None,
    )


def summary(report: Mapping[str, Any]) -> str:
    """Returns what the report of a distillation says, as a person reads it."""
    line = (
        f"{report['metric']} on the held-out examples: {report['before']:.4f} before, {report['after']:.4f} after "
        f"{report['steps']} steps, {report['minutes']:.1f} min"
    )
    # One that was written before this was looked at does not say it.
    if not report.get("given_back"):
        return line
    return f"{line}; that is less, and what came in is given back; lower {_WHERE}.learning_rate"


def _student(given: Compressed, config: Config, material: Material) -> tuple[Compressed, peft.PeftModel | None]:
    """Returns what is trained, and its adapter where that is what is trained of it."""
    student = _adapted_of(given, config, material)
    student.model.requires_grad_(True)
    torch.manual_seed(config.seed)
    if config.dropout is not None:
        set_dropout(student.model, config.dropout)
    if config.lora is None:
        return student, None
    adapted = with_adapters(student.model, config.lora, material.checkpoint.tensors)
    if config.from_checkpoint:
        begin_with(student.model, given.model.state_dict(), where=f"{_WHERE}.from_checkpoint")
    return student, adapted


def _adapted_of(given: Compressed, config: Config, material: Material) -> Compressed:
    """Returns a copy of what adapters are added to, or all weights are trained of."""
    if not config.from_checkpoint:
        return copied(given)
    plain = cuts.again(copied(material.original), cuts.written(given.cuts))
    return replace(given, model=plain.model.eval())


def _as_written(
    student: Compressed,
    adapted: peft.PeftModel,
    config: Config,
    material: Material,
    folder: Path,
    given: Compressed,
) -> Any:
    """Returns the model with the adapter as it is restored from `folder`, into which it is written."""
    if config.lora is None:
        raise TypeError("only adapters are written so")
    if material.world.writes:
        write_adapter(folder, student.model, adapted, material.checkpoint, precision=config.lora.written)
    material.world.gather(None)  # so that it is there for all
    return merged(_adapted_of(given, config, material).model, folder)


class _Lesson:
    """The losses of a student; watches the layers of both models while they answer for that, and not in evaluations."""

    def __init__(
        self, config: Config, student: Compressed, head: torch.nn.Module, teacher: torch.nn.Module, material: Material
    ) -> None:
        self._config, self._module = config, material.recipe.finetune.module
        self._head, self._teacher = head, teacher
        self._models = (student.model, material.original.model)
        ids = student.original_ids
        self._ids = None if ids is None else torch.tensor(ids, device=material.world.device)
        kept = original_layers(student)
        ends = [layer - 1 for layer in kept[1:]] + [depth(material.original.model) - 1]
        self._pairs = list(enumerate(ends))

    def losses(self, model: Any, batch: dict[str, torch.Tensor], world: World) -> torch.Tensor:
        """Returns the loss of each example of `batch`, FP32 `(batch,)`."""
        config, module = self._config, self._module
        masks: list[torch.Tensor] = []
        with ExitStack() as stack:
            stack.callback(self._head.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[1])).remove)
            student, teacher = (stack.enter_context(closing(_Watched(one))) for one in self._models)
            outputs = module.outputs(model, batch)
            with torch.no_grad():
                wanted = module.outputs(self._teacher, self._as_taught(batch))
        (mask,) = masks
        total: torch.Tensor = config.outputs * module.distances(outputs, wanted, batch, config.temperature)
        if config.labels:
            total = total + config.labels * module.losses(module.outputs_as_served(outputs, wanted), batch, world)
        if config.hidden:
            apart = [_apart(student.states[i], teacher.states[j], mask) for i, j in self._pairs]
            total = total + config.hidden * _of_examples(torch.stack(apart).mean(0), len(total))
        if config.relations:
            pairs = zip(student.projections(), teacher.projections(), strict=True)
            different = [_different(ours, theirs, mask) for ours, theirs in pairs]
            total = total + config.relations * _of_examples(torch.stack(different).mean(0), len(total))
        return total

    def _as_taught(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the batch in the original's token ids."""
        if self._ids is None:
            return batch
        return {name: self._ids[value] if name in _OF_TOKENS else value for name, value in batch.items()}


class _Watched:
    """What the layers of a model answer, and its last layer's queries, keys and values."""

    def __init__(self, model: Any) -> None:
        self.states: list[torch.Tensor] = []
        self._made: dict[Any, torch.Tensor] = {}
        self._linears, self._stacked = projections(model)
        all_layers = layers(model)
        self._handles = [layer.register_forward_hook(self._see) for layer in all_layers]
        self._handles += [all_layers[-1].register_forward_pre_hook(self._begin)]
        self._handles += [linear.register_forward_hook(self._see_made) for linear in self._linears]

    def _see(self, _: Any, __: Any, answer: Any) -> None:
        self.states.append(answer[0] if isinstance(answer, tuple) else answer)

    def _begin(self, _: Any, __: Any) -> None:
        # A layer that is called several times (ALBERT) answers last what counts.
        self._made.clear()

    def _see_made(self, linear: Any, _: Any, answer: torch.Tensor) -> None:
        # DeBERTa may ask the same linear again in a call, for its relative positions.
        self._made.setdefault(linear, answer)

    def projections(self) -> list[torch.Tensor]:
        """Returns queries, keys and values, each `(batch, seq, width)`."""
        return [part for linear in self._linears for part in self._made[linear].chunk(self._stacked, -1)]

    def close(self) -> None:
        """Ceases to watch."""
        for handle in self._handles:
            handle.remove()


def _apart(states: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the mean square of each row's difference, relative to that of `wanted`, over its tokens, `(rows,)`."""
    present = mask[..., None].float()
    difference = ((states.float() - wanted.float()).square() * present).sum((1, 2))
    return difference / (wanted.float().square() * present).sum((1, 2))


def _different(made: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the divergence of the relations among the tokens of each row, `(rows,)`.

    The widths are divided into as many relation heads as divide both, at most `_RELATION_HEADS`.
    """
    heads = max(n for n in range(1, _RELATION_HEADS + 1) if made.shape[-1] % n == 0 and wanted.shape[-1] % n == 0)
    ours, theirs = (_relations(states, heads, mask) for states in (made, wanted))
    of_tokens = divergence(ours, theirs).mean(1)
    return (of_tokens * mask).sum(1) / mask.sum(1)


def _relations(states: torch.Tensor, heads: int, mask: torch.Tensor) -> torch.Tensor:
    """Returns the scaled products of all tokens, FP32 `(rows, heads, seq, seq)`, minus infinity for padding."""
    by_head = states.float().reshape(*states.shape[:2], heads, -1).transpose(1, 2)
    with torch.autocast(states.device.type, enabled=False):  # which would compute them in BF16
        products: torch.Tensor = by_head @ by_head.transpose(2, 3) / math.sqrt(by_head.shape[-1])
    return products.masked_fill(~mask.bool()[:, None, None, :], float("-inf"))


def _of_examples(rows: torch.Tensor, examples: int) -> torch.Tensor:
    """Returns the mean over the sequences of each example: of pairs, the second ones lie behind the first ones."""
    return rows.reshape(-1, examples).mean(0)
