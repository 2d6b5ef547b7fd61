"""Processes that train together, by torch's own engine (`torchrun`); one process is the case of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Returns the sum of every process's `value`."""
        if self.size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Returns every process's `value`, in the order of their ranks."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            distributed.all_gather_object(values, value)
        return values

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the rows of every process behind one another; gradients flow back to the process they are of."""
        if self.size == 1:
            return rows
        counts = self.gather(len(rows))
        padded = torch.zeros((max(counts), *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
        parts = _Gathered.apply(  # type: ignore[no-untyped-call]
            torch.cat([rows, padded[len(rows) :]])
        )
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


ALONE = World(0, 1, torch.device("cpu"))
"""One process on the CPU."""


class _Gathered(torch.autograd.Function):
    """Every process's tensor, `(processes, …)` in the order of their ranks."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        # What each process has made of all parts belongs to the process that the part is of.
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[distributed.get_rank()]


@contextmanager
def world() -> Iterator[World]:
    """Joins the processes that `torchrun` has started, if it has: NCCL where there is a GPU, else gloo."""
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        yield World(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield World(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()
