"""What is trained: a checkpoint with its task's head, all of its weights or adapters on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tritonpress_generator.checkpoint import Checkpoint
from tritonpress_generator.errors import InputError
from tritonpress_generator.positions import check_length
from tritonpress_generator.pretrained import encoder_of, load_model, quiet_peft
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.signature import Signature
from tritonpress_generator.training.settings import FinetuneConfig, LoraConfig

if TYPE_CHECKING:
    import peft


@dataclass(frozen=True)
class Trainable:
    """A model that is trained; all its parts share their weights."""

    model: Any
    """Of `transformers`."""
    adapted: peft.PeftModel | None
    """The model with adapters, if these are what is trained."""
    head: torch.nn.Module
    """The task's, as it is exported."""
    signature: Signature

    @property
    def weights(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.head.parameters() if parameter.requires_grad)


def load(recipe: Recipe, checkpoint: Checkpoint, settings: Mapping[str, Any], config: FinetuneConfig) -> Trainable:
    """Returns what is trained of `checkpoint`, a head that it lacks made of the seed's random numbers.

    Args:
        recipe: The recipe.
        checkpoint: Where the weights are.
        settings: Of the model's config, to be changed.
        config: How it is trained.

    Raises:
        InputError: The checkpoint is at fault, or has fewer positions than a sequence may have.
    """
    task = recipe.task
    torch.manual_seed(config.seed)
    model = load_model(checkpoint, task.module.AUTO_CLASS, new_head=True, settings=settings)
    for key, length in (("serve", recipe.serve.max_length), ("finetune", config.max_length)):
        check_length(length or 0, encoder_of(model), where=f"{recipe.path}: {key}.max_length")
    if config.dropout is not None:
        set_dropout(model, config.dropout)
    adapted = None if config.lora is None else with_adapters(model, config.lora, checkpoint.tensors)
    head, signature = task.module.head(model, checkpoint, task.config)
    return Trainable(model, adapted, head, signature)


def set_dropout(model: torch.nn.Module, probability: float) -> None:
    """Sets the probability of every dropout in `model`."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
        # Attention that is computed in one call has a number of its own (`attention_dropout`).
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, probability)


def with_adapters(model: Any, config: LoraConfig, given: Collection[str]) -> peft.PeftModel:
    """Returns `model` with adapters on every linear layer of its encoder, which, with its head, are what is trained.

    Args:
        model: Is changed.
        config: The settings.
        given: The names of the tensors that the checkpoint has.
    """
    import peft

    base = model.base_model_prefix
    has_head = isinstance(getattr(model, base, None), torch.nn.Module)
    new = [name for name, child in model.named_children() if name != base and list(child.parameters())]
    # A pooler that the checkpoint lacks is as new as the head, and comes with the adapter as a whole.
    if not any("pooler." in name for name in given):
        new += [name for name, _ in model.named_modules() if name == f"{base}.pooler"]
    linear = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    whole = tuple(f"{name}." for name in new) if has_head else ()
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=[name for name in linear if not f"{name}.".startswith(whole)],
        modules_to_save=new if has_head else None,
    )
    with quiet_peft():
        adapted = peft.get_peft_model(model, settings)
    if not isinstance(adapted, peft.PeftModel):
        raise TypeError("peft must give a model of one adapter")
    return adapted


def begin_with(model: Any, wanted: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Sets new adapters so that a model computes what another one does, as nearly as their rank allows.

    Source: Eckart and Young 1936; of a difference of two matrices the parts with the largest singular values are the
    nearest of their rank.

    Args:
        model: As `with_adapters` leaves it.
        wanted: The weights of the other model, of the same shapes, by their names without adapters.
        where: The section of a recipe, for messages.

    Raises:
        InputError: Weights differ that no adapter changes.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    held: tuple[str, ...] = ()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                _begin(module, wanted[f"{name}.weight"])
                held += (f"{name}.lora_", f"{name}.base_layer.weight")
            elif isinstance(module, ModulesToSaveWrapper):
                for part, tensor in module.modules_to_save["default"].state_dict(keep_vars=True).items():
                    tensor.copy_(wanted[f"{name}.{part}"])
                held += (f"{name}.",)
        for name, tensor in model.state_dict().items():
            if not name.startswith(held) and not torch.equal(tensor, wanted[name.replace(".base_layer", "")]):
                raise InputError(
                    f"{where}: {name.replace('.base_layer', '')} is not the checkpoint's, and no adapter changes it; "
                    "leave out the pass that has changed it"
                )


def _begin(layer: Any, wanted: torch.Tensor) -> None:
    """Sets the adapter of a linear layer, whose weights are `(outputs, inputs)`."""
    rows, columns = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    left, sizes, right = torch.linalg.svd(wanted.double() - layer.base_layer.weight.double(), full_matrices=False)
    # What is rounding alone stays as it began: a row of random numbers whose column is 0 can learn, one of 0 cannot.
    sizes = sizes[: len(rows)] / layer.scaling["default"]
    rank = int((sizes > sizes.max().clamp(min=1e-9) * 1e-6).sum())
    rows[:rank] = (sizes[:rank, None].sqrt() * right[:rank]).to(rows)
    columns[:, :rank] = (left[:, :rank] * sizes[:rank].sqrt()).to(columns)


def freeze_what_is_not_read(head: torch.nn.Module, loss: torch.Tensor) -> None:
    """Freezes the weights that no answer depends on, such as a pooler that nobody asks.

    Args:
        head: What is trained.
        loss: That of an example.
    """
    loss.backward()  # type: ignore[no-untyped-call]
    for parameter in head.parameters():
        if parameter.requires_grad:
            parameter.requires_grad = parameter.grad is not None
        parameter.grad = None
