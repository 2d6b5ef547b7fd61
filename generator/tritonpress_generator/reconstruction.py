"""Weights that make what is left of a layer answer as the whole one did, by least squares.

Source: Kwon et al. 2022 (arXiv:2204.09656), section 4.3, which scales units; here, as in the closed form of OBS
(Hassibi and Stork 1993) and of ZipLM (Kurtic et al. 2023), all weights that read them are solved for. Each block is
held to the original's answer, and, where its answer is added to what it read, also to what was lost before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any

import torch

from tritonpress_generator.structure import Group


class _Reached(Exception):  # noqa: N818 (it is no error)
    """Ends a forward pass where all has been seen."""


def reconstruct(
    group: Group,
    original: Group,
    batches: Iterable[dict[str, torch.Tensor]],
    run: Callable[[Any, dict[str, torch.Tensor]], Any],
    models: tuple[Any, Any],
    *,
    damping: float,
) -> float:
    """Solves for the weights and the bias that read `group`, and returns the error that is left, relative to before.

    Args:
        group: Of the model that has been pruned; the blocks before it are done.
        original: The same block of the original.
        batches: Texts, with their `attention_mask`.
        run: Runs a model on a batch.
        models: The pruned and the original one.
        damping: Pulls to the weights as they are, relative to the mean square of what they read.
    """
    reader = group.read_by
    size = reader.in_features + (reader.bias is not None)
    products = torch.zeros((size, size), dtype=torch.float64)
    toward = torch.zeros((size, reader.out_features), dtype=torch.float64)
    before = torch.zeros((), dtype=torch.float64)
    with torch.inference_mode():
        for batch in batches:
            read, added, given = _seen(group, models[0], batch, run)
            _, added_before, wanted = _seen(original, models[1], batch, run)
            missing = (wanted - given).double()
            if group.post_norm:
                missing += (added_before - added).double()
            ones = torch.ones((len(read), size - reader.in_features), dtype=torch.float64)
            features = torch.cat([read.double(), ones], 1)
            products += features.T @ features
            toward += features.T @ missing
            before += missing.square().sum()
    mean = float(products.diagonal()[: reader.in_features].mean())
    damped = products + damping * mean * torch.eye(size, dtype=torch.float64)
    change = torch.linalg.solve(damped, toward)
    # |missing - features @ change|² from the sums alone.
    after = before - 2 * (change * toward).sum() + (change * (products @ change)).sum()
    reader.weight = torch.nn.Parameter((reader.weight.double() + change[: reader.in_features].T).float())
    if reader.bias is not None:
        reader.bias = torch.nn.Parameter((reader.bias.double() + change[-1]).float())
    return float((after.clamp(min=0) / before.clamp(min=1e-30)).sqrt())


def _seen(
    group: Group, model: Any, batch: dict[str, torch.Tensor], run: Callable[[Any, dict[str, torch.Tensor]], Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns what `group` gives to be read, what its block was given, and its answer, `(tokens, …)` of all tokens."""
    seen: dict[str, list[torch.Tensor]] = {"read": [], "block": [], "answer": []}
    present = batch["attention_mask"].bool()

    def given(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        # DeBERTa may ask the same linear again in a call, for its relative positions.
        if len(seen["block"]) == len(seen["read"]):
            seen["block"].append(inputs[0][present])

    def answered(_: Any, inputs: tuple[torch.Tensor, ...], answer: torch.Tensor) -> None:
        seen["read"].append(inputs[0][present])
        seen["answer"].append(answer[present])
        if len(seen["read"]) == group.calls:
            raise _Reached

    with ExitStack() as stack:
        stack.callback(group.made_by[0].register_forward_pre_hook(given).remove)
        stack.callback(group.read_by.register_forward_hook(answered).remove)
        with suppress(_Reached):
            run(model, batch)
    read, block, answer = (torch.cat(parts) for parts in seen.values())
    return read, block, answer
