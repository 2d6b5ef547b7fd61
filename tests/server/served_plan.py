"""One instance of a plan on the doubles of TensorRT and CUDA, without Triton."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import recorded_cuda
import recorded_tensorrt
from computed_plan import ComputedPlan
from cuda_calls import Cuda
from recorded_cuda import RecordedCuda
from recorded_tensorrt import Calls
from stub_stand_in import Request, answered, load_backend
from tensorrt_configs import model_config

NEWEST, NEWEST_CUDA = recorded_tensorrt.VERSIONS[-1], recorded_cuda.VERSIONS[-1]
backend = load_backend("tensorrt")


class Served:
    """One instance of a plan, and all calls that it made."""

    def __init__(
        self,
        folder: Path,
        plan: ComputedPlan | None = None,
        *,
        version: str = NEWEST,
        cuda_version: str = NEWEST_CUDA,
        fails: dict[str, Any] | None = None,
        changes: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> None:
        self.calls: Calls = []
        self.cuda = RecordedCuda(cuda_version, self.calls, fails)
        trt = (plan or ComputedPlan()).module(version, self.cuda, self.calls, **(changes or {}))
        (folder / "1").mkdir(exist_ok=True)
        (folder / "1" / "model.plan").write_bytes(b"plan")
        backend.tensorrt = lambda *, remedy: trt
        backend.Cuda = lambda: Cuda(self.cuda)
        self.log: list[tuple[str, str]] = backend.pb_utils.Logger.lines
        self.log.clear()
        self.model = backend.TritonPythonModel()
        self.model.initialize(
            {
                "model_config": json.dumps(model_config(**config)),
                "model_instance_kind": "GPU",
                "model_instance_name": "m_0_0",
                "model_instance_device_id": "3",
                "model_repository": str(folder),
                "model_version": "1",
            }
        )
        self.loading = list(self.calls)
        self.calls.clear()

    def ask(self, *inputs: Any, outputs: Sequence[str] = ("y",)) -> list[Any]:
        return answered(self.model, [Request({"x": np.asarray(x, np.float32)}, outputs) for x in inputs])

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]
