"""A worker: a TensorRT plan, its inputs on the GPU.

python -m visit.tensorrt_worker PLAN [--cuda-graph]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from tritonpress_generator.plans.runner import Cuda, PlanError, Runner, device, tensorrt

from visit.contest import Measured, run_for, work


def load(path: Path, *, cuda_graph: bool) -> tuple[dict[str, Any], Measured]:
    """Returns what the worker is, and what measures it."""
    stamp = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
    runner = Runner(tensorrt(), path.read_bytes(), stamp)

    def measure(request: dict[str, Any]) -> dict[str, Any]:
        batch, length = request["batch"], request["length"]
        feed = {name: np.ones((batch, length), np.int32) for name in runner.inputs}
        runner(feed)
        if cuda_graph:
            runner.capture()
        return run_for(request["seconds"], batch, runner.again)

    return {"plan": path.name, "tensorrt": stamp["tensorrt"], **device(Cuda())}, measure


def main() -> None:
    """Works until the input ends."""
    parser = argparse.ArgumentParser(description="Measures a TensorRT plan.")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--cuda-graph", action="store_true")
    options = parser.parse_args()
    work(lambda: load(options.plan, cuda_graph=options.cuda_graph), (PlanError, OSError, ValueError))


if __name__ == "__main__":
    main()
