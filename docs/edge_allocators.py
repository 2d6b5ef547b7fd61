"""Says how much memory an engine takes with each setting of ONNX Runtime's allocator; a table of docs/measurements.md.

.venv/bin/python docs/edge_allocators.py model.ort --max-batch-size 16 --max-length 256
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

SETTINGS = ("arena", "arena, no patterns", "arena that shrinks", "arena that shrinks, no patterns", "no arena")
SHAPES = 80


def peak_mib() -> float:
    """Returns the most memory that this process has had resident, in MiB."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def run(model: str, setting: str, most: int, longest: int) -> None:
    """Prints the peaks of this process with one setting."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = setting != "no arena"
    options.enable_mem_pattern = options.enable_cpu_mem_arena and "no patterns" not in setting
    of_run = onnxruntime.RunOptions()
    if "shrinks" in setting:
        of_run.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]

    def execute(lengths: list[int]) -> None:
        mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
        session.run(None, dict.fromkeys(names, mask.astype(np.int64)), of_run)

    peaks = [peak_mib()]
    execute([longest] * most)
    peaks.append(peak_mib())
    generator = np.random.default_rng(1)
    for _ in range(SHAPES):
        length = int(generator.integers(4, longest, endpoint=True))
        others = generator.integers(1, length, int(generator.integers(0, most)), endpoint=True)
        execute([length, *others.tolist()])
    peaks.append(peak_mib())
    print(f"{setting:32}" + "".join(f"{peak:16.0f}" for peak in peaks), flush=True)


def main() -> None:
    """Prints the table, of a process a line."""
    parser = argparse.ArgumentParser(description="Compares settings of ONNX Runtime's allocator.")
    parser.add_argument("model")
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--setting", choices=SETTINGS, help="this one alone, in this process")
    options = parser.parse_args()
    if options.setting:
        run(options.model, options.setting, options.max_batch_size, options.max_length)
        return
    print(f"{'MiB':32}{'loaded':>16}{'full batch':>16}{f'{SHAPES} shapes':>16}", flush=True)
    for setting in SETTINGS:
        subprocess.run([sys.executable, *sys.argv, "--setting", setting], check=True)


if __name__ == "__main__":
    main()
