"""Measures how much memory an engine takes at most, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonpress_generator.engines import Asked
from tritonpress_generator.errors import InputError

_SCRIPT = Path(__file__).with_name("memory_process.py")
_STEPS = Path(__file__).with_name("steps")
_MIXED_BATCHES = 32


@dataclass(frozen=True)
class PeakMemory:
    """The most bytes that were resident up to each point, in this order."""

    interpreter: int
    """Python, NumPy and ONNX Runtime, before the engine is loaded; part of all that follow."""
    loaded: int
    one_sequence: int
    """Of the most tokens."""
    full_batch: int
    """As many sequences as an execution may have, each of the most tokens."""
    mixed_batches: int
    """Batches of sequences and lengths at random."""

    @property
    def most(self) -> int:
        """The most of them all."""
        return self.mixed_batches

    def __str__(self) -> str:
        figures = ", ".join(f"{name.replace('_', ' ')} {mib(value):.1f}" for name, value in vars(self).items())
        return f"{figures} MiB"


def mib(size_bytes: int) -> float:
    """Returns bytes in MiB."""
    return size_bytes / 2**20


def measure(step: str, folder: Path, parameters: Mapping[str, str], asked: Asked) -> PeakMemory:
    """Returns the peaks of a fresh process that loads an engine, and answers the largest that it may be asked.

    Args:
        step: The folder of `steps` whose `Engine` it is.
        folder: What the engine was built in.
        parameters: Of Triton's config.
        asked: The sequences and tokens of an execution; padded, not packed.

    Raises:
        InputError: The process did not come to its end, as when the system has not enough memory for it.
    """
    what = {
        "engine": str(_STEPS / step / "engine.py"),
        "folder": str(folder),
        "parameters": dict(parameters),
        "inputs": asked.signature.inputs,
        "max_batch_size": asked.max_batch_size,
        "max_length": asked.max_length,
        "mixed_batches": _MIXED_BATCHES,
    }
    command = [sys.executable, "-I", str(_SCRIPT), json.dumps(what)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"engine.{step}: an execution of {asked.max_batch_size} sequences of {asked.max_length} tokens must run "
            f"where the memory is measured, ended with status {ended.returncode} ({last[:200]}); lower "
            "serve.max_batch_size or serve.max_length"
        )
    return PeakMemory(**json.loads(ended.stdout))
