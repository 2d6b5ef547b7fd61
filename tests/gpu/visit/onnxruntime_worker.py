"""A worker: an ONNX graph in ONNX Runtime, its inputs where the provider wants them.

python -m visit.onnxruntime_worker MODEL.onnx [--provider CUDAExecutionProvider]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from visit.contest import Measured, run_for, work


class ProviderError(Exception):
    """The installed ONNX Runtime lacks the provider; one line says so."""


def load(path: Path, *, provider: str) -> tuple[dict[str, Any], Measured]:
    """Returns what the worker is, and what measures it."""
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ProviderError(f"ONNX Runtime {onnxruntime.__version__} has no {provider}, only {', '.join(available)}")
    session = onnxruntime.InferenceSession(str(path), providers=[provider])
    # What falls back to the processor measures the copies.
    if session.get_providers()[0] != provider:
        raise ProviderError(f"{provider} could not be loaded by ONNX Runtime {onnxruntime.__version__}")
    place = "cuda" if provider == "CUDAExecutionProvider" else "cpu"

    def measure(request: dict[str, Any]) -> dict[str, Any]:
        batch, length = request["batch"], request["length"]
        binding = session.io_binding()
        for tensor in session.get_inputs():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ones((batch, length), np.int32), place, 0)
            binding.bind_ortvalue_input(tensor.name, value)
        for tensor in session.get_outputs():
            binding.bind_output(tensor.name, place)

        def executions(count: int) -> float:
            start = time.perf_counter()
            for _ in range(count):
                session.run_with_iobinding(binding)
            return time.perf_counter() - start

        executions(1)
        return run_for(request["seconds"], batch, executions)

    return {"onnxruntime": onnxruntime.__version__, "provider": provider}, measure


def main() -> None:
    """Works until the input ends."""
    parser = argparse.ArgumentParser(description="Measures an ONNX graph in ONNX Runtime.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--provider", default="CUDAExecutionProvider")
    options = parser.parse_args()
    refusals = (ProviderError, RuntimeError, ValueError)
    work(lambda: load(options.model, provider=options.provider), refusals)


if __name__ == "__main__":
    main()
