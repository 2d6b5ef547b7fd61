"""How much each head and neuron matters to the task: the Fisher information of a mask on it.

Source: Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers" (arXiv:2204.09656), sections 4.1
and 4.2. A unit is multiplied with a mask of 1; near a minimum of the loss, what taking units out costs is half the
quadratic form of the Fisher information, which is the mean over examples of the products of the masks' gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tritonpress_generator.structure import Group


def gradients(
    groups: Sequence[Group],
    batches: Iterable[dict[str, torch.Tensor]],
    losses: Callable[[dict[str, torch.Tensor]], torch.Tensor],
) -> list[NDArray[np.float32]]:
    """Returns the gradients of the losses by the masks, of each group FP32 `(sequences, units)`.

    Args:
        groups: Of a model in eval mode.
        batches: The examples.
        losses: Gives the loss of each example of a batch, with the model of `groups`.
    """
    masks: list[list[torch.Tensor]] = [[] for _ in groups]
    found: list[list[NDArray[np.float32]]] = [[] for _ in groups]
    with ExitStack() as stack:
        for number, group in enumerate(groups):
            handle = group.read_by.register_forward_pre_hook(_masking(group, masks[number]))
            stack.callback(handle.remove)
        for batch in batches:
            losses(batch).sum().backward()  # type: ignore[no-untyped-call]
            for number, of_group in enumerate(masks):
                # Shared layers (ALBERT) are asked several times: their masks are one.
                total = torch.stack([mask.grad for mask in of_group if mask.grad is not None]).sum(0)
                found[number].append(total.numpy())
                of_group.clear()
    return [np.concatenate(parts) for parts in found]


def _masking(group: Group, masks: list[torch.Tensor]) -> Callable[[Any, tuple[torch.Tensor, ...]], Any]:
    """Returns the hook that multiplies what `group` gives by a mask of 1, an own one for each sequence."""

    def multiply(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (states,) = inputs
        mask = torch.ones((len(states), group.units), requires_grad=True)
        masks.append(mask)
        by_unit = states.reshape(len(states), -1, group.units, group.width) * mask[:, None, :, None]
        return (by_unit.reshape(states.shape),)

    return multiply


def least_important(gradients: NDArray[np.float32], count: int) -> list[int]:
    """Returns the `count` units whose loss together costs the least, ascending.

    Args:
        gradients: By the masks, FP32 `(sequences, units)`.
        count: How many; at most all.

    Two candidates are compared: those of the least information each (the diagonal), and those that are found one by
    one, always the one that adds the least to the quadratic form, in which units that stand for each other count.
    """
    fisher = gradients.astype(np.float64).T @ gradients.astype(np.float64)
    alone = np.argsort(np.diag(fisher), kind="stable")[:count]
    greedy: list[int] = []
    cost = np.diag(fisher).copy()
    for _ in range(count):
        unit = int(np.argmin(cost))
        greedy.append(unit)
        cost = cost + 2 * fisher[unit]
        cost[greedy] = np.inf
    chosen = min(([int(unit) for unit in alone], greedy), key=lambda units: float(fisher[np.ix_(units, units)].sum()))
    return sorted(chosen)
