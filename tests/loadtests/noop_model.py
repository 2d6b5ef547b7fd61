"""A model that does nothing, of the contract of classification, for what the generator can do by itself."""

from __future__ import annotations

from pathlib import Path

_CONFIG = """name: "noop"
backend: "python"
max_batch_size: 64
input [{ name: "TEXT" data_type: TYPE_STRING dims: [1] }]
output [{ name: "LABEL" data_type: TYPE_STRING dims: [1] }, { name: "SCORE" data_type: TYPE_FP32 dims: [1] }]
instance_group [{ count: INSTANCES kind: KIND_CPU }]
dynamic_batching {}
"""
_MODEL = '''"""Answers every text with one label, after a delay if it is asked for one."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils

DELAY_S = DELAY


class TritonPythonModel:
    def execute(self, requests):
        if DELAY_S:
            time.sleep(DELAY_S)
        responses = []
        for request in requests:
            rows = pb_utils.get_input_tensor_by_name(request, "TEXT").shape()[0]
            label = pb_utils.Tensor("LABEL", np.full((rows, 1), b"none", object))
            score = pb_utils.Tensor("SCORE", np.ones((rows, 1), np.float32))
            responses.append(pb_utils.InferenceResponse([label, score]))
        return responses
'''


def write_noop(repository: Path, *, delay_s: float = 0.0, instances: int = 1, max_batch_size: int = 64) -> Path:
    """Returns the repository with the model `noop` in it; each execution takes `delay_s`, whatever its batch."""
    version = repository / "noop" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(_MODEL.replace("DELAY_S = DELAY", f"DELAY_S = {delay_s}"), encoding="utf-8")
    config = _CONFIG.replace("INSTANCES", str(instances)).replace(
        "max_batch_size: 64", f"max_batch_size: {max_batch_size}"
    )
    (version.parent / "config.pbtxt").write_text(config, encoding="utf-8")
    return repository
