"""Prints the peak resident memory, in bytes, of a process that loads an engine and runs it: a line of JSON.

`peak_memory.py` starts it as a script. It imports NumPy and ONNX Runtime alone, as the process that serves needs them.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401  (loaded before the first figure, so that it is not the model's)
from numpy.typing import NDArray

Feed = dict[str, NDArray[np.int64]]


def peak_bytes() -> int:
    """Returns the most memory that this process has had resident so far.

    Not from `getrusage`, whose figure begins with that of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def batch(inputs: list[str], lengths: NDArray[np.int64]) -> Feed:
    """Returns sequences of `lengths` tokens, padded to the longest: INT64 `(batch, seq)`, by each name of `inputs`."""
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    return dict.fromkeys(inputs, mask)


def executions(asked: Mapping[str, Any]) -> Iterator[tuple[str, list[Feed]]]:
    """Yields what is run in front of each figure, by its name."""
    inputs, most, longest = asked["inputs"], asked["max_batch_size"], asked["max_length"]
    yield "one_sequence", [batch(inputs, np.array([longest]))]
    yield "full_batch", [batch(inputs, np.full(most, longest))]
    generator = np.random.default_rng(0)
    # Other shapes and paddings leave an allocator with blocks of other sizes, and so with a higher peak.
    sizes = [most, *generator.integers(1, most, asked["mixed_batches"] - 1, endpoint=True)]
    mixed = [generator.integers(1, longest, size, endpoint=True) for size in sizes]
    mixed[0][0] = longest
    yield "mixed_batches", [batch(inputs, lengths) for lengths in mixed]


def main() -> None:
    """Reads what to load and run, and with what, from the command line."""
    asked = json.loads(sys.argv[1])
    figures = {"interpreter": peak_bytes()}
    engine = runpy.run_path(asked["engine"])["Engine"](Path(asked["folder"]), asked["parameters"])
    figures["loaded"] = peak_bytes()
    for name, feeds in executions(asked):
        for _ in engine(feeds):
            pass
        figures[name] = peak_bytes()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
