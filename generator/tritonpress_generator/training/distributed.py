"""Processes that train together, by torch's own engine (`torchrun`); one process is the case of one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import distributed

from tritonpress_generator.errors import InputError

_OF_TORCHRUN = ("RANK", "MASTER_ADDR", "MASTER_PORT")


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

    def check_shared(self, folder: Path, *, where: str) -> None:
        """Refuses a folder in which a process does not see what the one that writes has written.

        Args:
            folder: As this process names it; it must be there.
            where: What needs it, for the message.

        Raises:
            InputError: See there.
        """
        if self.size == 1:
            return
        token = folder / f".seen-{uuid4().hex}"
        if self.writes:
            token.touch()
        # By a name that nobody has asked for before, so that no network's file system has its absence in a cache.
        blind = self.gather(not (folder / self.gather(token.name)[0]).exists())
        if self.writes:
            token.unlink()
        if any(blind):
            raise InputError(
                f"{where}: {folder} must be one folder for all processes, {sum(blind)} of {self.size} do not see what "
                "the first one writes there; give one that the hosts share"
            )


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


def device_of(environment: Mapping[str, str], gpus: int) -> torch.device:
    """Returns what a process that `torchrun` has started computes on: of several GPUs, each process has its own.

    Args:
        environment: Says which process of its host it is.
        gpus: How many GPUs the host has.

    Raises:
        InputError: It lacks what torchrun writes into it, or there are fewer GPUs than processes.
    """
    missing = [name for name in (*_OF_TORCHRUN, *(["LOCAL_RANK"] if gpus else [])) if name not in environment]
    if missing:
        raise InputError(
            f"torchrun: with WORLD_SIZE the environment must have {', '.join(missing)} too, has not; start the "
            "processes with torchrun, or unset WORLD_SIZE"
        )
    if not gpus:
        return torch.device("cpu")
    number = int(environment["LOCAL_RANK"])
    if number >= gpus:
        raise InputError(
            f"torchrun: each process of a host must have a GPU of its own, there are {gpus} and this is process "
            f"{number + 1}; give --nproc-per-node {gpus}"
        )
    return torch.device("cuda", number)


@contextmanager
def world() -> Iterator[World]:
    """Joins the processes that `torchrun` has started, if it has: NCCL where there is a GPU, else gloo.

    Raises:
        InputError: As `device_of`.
    """
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        yield World(0, 1, torch.device("cuda" if cuda else "cpu"))
        return
    device = device_of(os.environ, torch.cuda.device_count() if cuda else 0)
    if cuda:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield World(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()
