"""A machine with TensorRT and a GPU as the generator sees it: the recorded doubles, whose plans answer by numpy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import recorded_cuda
import recorded_tensorrt
from computed_plan import ComputedPlan
from recorded_cuda import RecordedCuda
from recorded_tensorrt import Calls
from tritonpress_generator.plans import builder, runner
from tritonpress_server.backends.tensorrt import cuda_calls

INPUTS = ("input_ids", "attention_mask")
LAYER = {"Name": "a", "Outputs": [{"Name": "x", "Format/Datatype": "Row major linear FP16 format"}]}


def sums(inputs: Any) -> dict[str, Any]:
    return {"y": np.add(*(inputs[name] for name in INPUTS)).astype(np.float32)}


class Machine:
    """The doubles, put where the generator asks for TensorRT and CUDA."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        version: str = recorded_tensorrt.VERSIONS[-1],
        plan: ComputedPlan | None = None,
        fails: dict[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        """Answers as `plan`, the sum of its inputs in two profiles by default, with `changes` by `Class.name`."""
        self.calls: Calls = []
        self.cuda = RecordedCuda(recorded_cuda.VERSIONS[0], self.calls, fails, pageable=True)
        plan = plan or ComputedPlan(
            profiles=[dict.fromkeys(INPUTS, ((1, size), (4, size), (4, size))) for size in (8, 24)],
            inputs=dict.fromkeys(INPUTS, ("INT32", (-1, -1))),
            outputs={"y": ("FLOAT", (-1, -1))},
            compute=sums,
        )
        self.trt = plan.module(
            version,
            self.cuda,
            self.calls,
            **{
                "OnnxParser.parse": lambda *_: True,
                "OnnxParser.num_errors": 0,
                "INetworkDefinition.num_inputs": len(plan.inputs),
                "INetworkDefinition.get_input": lambda number: type("Input", (), {"name": list(plan.inputs)[number]}),
                "IBuilderConfig.add_optimization_profile": lambda *_: 0,
                "Builder.build_serialized_network": lambda *_: b"plan",
                "ITimingCache.serialize": lambda *_: b"timings",
                "EngineInspector.get_engine_information": lambda _: json.dumps({"Layers": [LAYER]}),
                **changes,
            },
        )
        for module in (builder, runner):
            monkeypatch.setattr(module, "tensorrt", lambda: self.trt)
            monkeypatch.setattr(module, "Cuda", lambda: cuda_calls.Cuda(self.cuda))
