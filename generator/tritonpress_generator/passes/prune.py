"""Structured pruning without training: heads and FFN neurons that matter least to the task are taken out.

Source: Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers" (arXiv:2204.09656): the Fisher
information of masks on the task's training examples (`importance.py`), the division between heads and neurons that
costs the least at a limit of multiplications, the choice within a layer with regard to units that stand for each other,
and least squares for what is left (`reconstruction.py`). What remains is a smaller dense model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tritonpress_generator import cuts
from tritonpress_generator.compression import Compressed, Material, copied
from tritonpress_generator.errors import InputError
from tritonpress_generator.importance import gradients, least_important
from tritonpress_generator.recipe_text import Settings
from tritonpress_generator.reconstruction import reconstruct
from tritonpress_generator.structure import Group, Kind, groups
from tritonpress_generator.token_states import token_states

_BATCH = 32
_FEWEST_EXAMPLES = 16


class Config(Settings):
    heads: float = Field(default=0.0, ge=0, lt=1)
    """The share of all attention heads that is taken out."""
    ffn: float = Field(default=0.0, ge=0, lt=1)
    """The share of all FFN neurons that is taken out."""
    flops: float | None = Field(default=None, gt=0, lt=1)
    """In place of both: the share of the layers' multiplications that is taken out, divided at the least loss."""
    length: int = Field(default=128, ge=1)
    """The tokens of a sequence for which multiplications are counted."""
    round_to: int = Field(default=32, ge=1, le=1024)
    """What a layer's number of neurons is a multiple of, where the model's is: kernels compute in such blocks."""
    samples: int = Field(default=2048, ge=16)
    """How many training examples show what matters."""
    reconstruct: bool = True
    """Whether the weights that are left are solved for."""
    reconstruction_samples: int = Field(default=512, ge=16)
    """How many training examples they are solved on."""
    damping: float = Field(default=0.01, gt=0)
    """How strongly solved weights are pulled to what they were, relative to the mean square of what they read."""

    @model_validator(mode="after")
    def _says_how_much(self) -> Config:
        if (self.flops is None) == (self.heads == self.ffn == 0):
            raise ValueError("give heads and ffn, or flops")
        return self


def apply(given: Compressed, config: Config, material: Material) -> Compressed:
    """Returns the pruned model.

    Args:
        given: Is left as it is.
        config: The settings.
        material: Has the training examples.

    Raises:
        InputError: The family's layers are not known, too little would be left, or there are no examples.
    """
    result = copied(given)
    result.model.requires_grad_(False)
    kinds: tuple[Kind, ...] = ("heads", "ffn") if config.flops is not None or config.heads else ("ffn",)
    all_groups = groups(result.model, kinds)
    examples = len(material.examples.training)
    if examples < _FEWEST_EXAMPLES:
        raise InputError(
            f"passes.prune: needs at least {_FEWEST_EXAMPLES} training examples to see what matters, got {examples}; "
            "add some to data.train"
        )
    features = material.features(given.tokenizer, config.samples, model=given.model, as_served=True)
    head, _ = material.head(result.model)
    found = gradients(all_groups, material.batches(features, _BATCH), lambda batch: material.losses(head, batch))
    if not all(np.isfinite(one).all() for one in found):
        raise InputError("passes.prune: the loss on the training examples must be finite, is not; check the labels")
    counts = _counts(all_groups, found, config)
    before = _products(all_groups, config.length)
    for kind in kinds:
        chosen = [
            sorted(set(range(group.units)) - set(least_important(of_group, group.units - count)))
            for group, of_group, count in zip(all_groups, found, counts, strict=True)
            if group.kind == kind
        ]
        result = cuts.units(result, chosen, kind)
    kept = groups(result.model, kinds)
    report = {
        "heads": [group.units for group in kept if group.kind == "heads"],
        "ffn": [group.units for group in kept if group.kind == "ffn"],
        "products": _products(kept, config.length) / before,
    }
    if config.reconstruct:
        fewer = material.features(given.tokenizer, min(config.samples, config.reconstruction_samples))
        report["errors"] = _reconstruct(kept, result, given, material, fewer, config)
    chosen_anew = material.chosen(result.model, result.tokenizer)
    history = (*given.history, f"prune {config.model_dump_json()}")
    return replace(result, report=result.report | {"prune": report}, history=history, chosen=chosen_anew)


def _counts(of: Sequence[Group], gradients: Sequence[NDArray[np.float32]], config: Config) -> list[int]:
    """Returns how many units each group keeps."""
    information = [np.square(one.astype(np.float64)).sum(0) for one in gradients]
    shares = {"heads": config.heads, "ffn": config.ffn}
    if config.flops is not None:
        shares = divided(of, information, config.flops, config.length)
    counts = [group.units for group in of]
    for kind, share in shares.items():
        members = [number for number, group in enumerate(of) if group.kind == kind]
        if not members or not share:
            continue
        step = config.round_to if kind == "ffn" and all(of[i].units % config.round_to == 0 for i in members) else 1
        left = round(sum(of[i].units for i in members) * (1 - share) / step)
        if left < len(members):
            raise InputError(
                f"passes.prune: {kind} must leave every layer {step} at least, a share of {share:.3g} leaves "
                f"{left * step} of {sum(of[i].units for i in members)} for {len(members)} layers; lower it, or crop "
                "layers"
            )
        for number, count in zip(members, _rounded([information[i] for i in members], left, step), strict=True):
            counts[number] = count
    return counts


def divided(
    of: Sequence[Group], information: Sequence[NDArray[np.float64]], share: float, length: int
) -> dict[str, float]:
    """Returns the shares of heads and of neurons that save `share` of the multiplications and lose the least.

    Source: Kwon et al. 2022, algorithm 1, which tries every number of heads.
    """
    by_kind: dict[str, NDArray[np.float64]] = {}
    cost: dict[str, int] = {}
    for kind in ("heads", "ffn"):
        members = [i for i, group in enumerate(of) if group.kind == kind]
        by_kind[kind] = np.sort(np.concatenate([information[i] for i in members]))
        cost[kind] = of[members[0]].products(length)
    total = sum(cost[kind] * len(units) for kind, units in by_kind.items())
    heads, neurons = by_kind["heads"], by_kind["ffn"]
    layers = len(of) // 2
    best: tuple[float, dict[str, float]] | None = None
    for gone in range(len(heads) - layers + 1):
        needed = max(0, int(np.ceil((share * total - gone * cost["heads"]) / cost["ffn"])))
        if needed > len(neurons) - layers:
            continue
        loss = float(heads[:gone].sum() + neurons[:needed].sum())
        if best is None or loss < best[0]:
            best = loss, {"heads": gone / len(heads), "ffn": needed / len(neurons)}
    if best is None:
        raise InputError(
            f"passes.prune: flops must leave every layer a head and a neuron, {share:g} does not; lower it, or crop "
            "layers"
        )
    return best[1]


def _rounded(information: Sequence[NDArray[np.float64]], left: int, step: int) -> list[int]:
    """Returns how many units each layer keeps: `left` blocks of `step`, of which each layer has one.

    A block is the next most important units of a layer; those that matter most are taken, wherever they are.
    """
    blocks = sorted(
        (
            (float(np.sort(units)[::-1][start : start + step].sum()), layer, start)
            for layer, units in enumerate(information)
            for start in range(0, len(units), step)
        ),
        key=lambda block: (block[2] != 0, -block[0]),
    )
    counts = [0] * len(information)
    for _, layer, _ in blocks[:left]:
        counts[layer] += step
    return counts


def _products(of: Sequence[Group], length: int) -> int:
    """Returns the multiplications of all layers for a token of a sequence of `length`."""
    return sum(group.calls * group.units * group.products(length) for group in of)


def _reconstruct(
    kept: Sequence[Group],
    result: Compressed,
    given: Compressed,
    material: Material,
    features: Sequence[Any],
    config: Config,
) -> list[float]:
    """Solves for the weights of the blocks in their order, and returns the error that is left of each block's."""
    original = {(group.kind, group.layer): group for group in groups(given.model, sorted({g.kind for g in kept}))}
    heads = {id(model): material.head(model)[0] for model in (result.model, given.model)}

    def run(model: Any, batch: dict[str, torch.Tensor]) -> None:
        segments = {name: batch[name] for name in ("token_type_ids",) if name in batch}
        token_states(heads[id(model)].encoder, batch["input_ids"], batch["attention_mask"], **segments)

    errors = []
    for group in kept:
        batches = material.batches(features, _BATCH)
        models = (result.model, given.model)
        errors.append(
            reconstruct(group, original[group.kind, group.layer], batches, run, models, damping=config.damping)
        )
    return errors
