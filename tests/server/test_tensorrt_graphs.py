"""CUDA graphs of the `tensorrt` backend, on the doubles of TensorRT and CUDA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded_cuda
import recorded_tensorrt
from computed_plan import ComputedPlan
from served_plan import Served
from tensorrt_configs import cuda_graphs, spec


@pytest.mark.parametrize("version", recorded_tensorrt.VERSIONS)
@pytest.mark.parametrize("cuda_version", recorded_cuda.VERSIONS)
def test_graph_is_captured_after_an_execution_and_launched_alone(
    tmp_path: Path, version: str, cuda_version: str
) -> None:
    served = Served(tmp_path, version=version, cuda_version=cuda_version, optimization=cuda_graphs(spec(2)))
    names = [name for name, _ in served.loading]
    begin, end = names.index("cudaStreamBeginCapture"), names.index("cudaStreamEndCapture")
    assert names[begin + 1 : end] == ["cudaMemcpyAsync", "IExecutionContext.execute_async_v3", "cudaMemcpyAsync"]
    assert names[begin - 2 : begin] == ["cudaEventRecord", "cudaEventSynchronize"]
    assert "IExecutionContext.execute_async_v3" in names[:begin]
    assert names[end + 1 : end + 4] == ["cudaGraphInstantiateWithFlags", "cudaGraphDestroy", "cudaGraphUpload"]
    x = np.arange(8).reshape(2, 4)
    assert np.array_equal(served.ask(x)[0]["y"], x + 1)
    assert served.names() == ["cudaGraphLaunch", "cudaEventRecord", "cudaEventSynchronize"]
    served.calls.clear()
    assert np.array_equal(served.ask(x[:1])[0]["y"], x[:1] + 1)
    assert "cudaGraphLaunch" not in served.names()


def test_batch_is_padded_with_its_last_row_to_a_graph_with_a_lower_bound(tmp_path: Path) -> None:
    seen = []

    def compute(inputs: Mapping[str, Any]) -> dict[str, Any]:
        seen.append(inputs["x"].copy())
        return {"y": inputs["x"] + 1}

    plan = ComputedPlan(compute=compute)
    served = Served(tmp_path, plan, optimization=cuda_graphs(spec(4, least=3), spec(8, least=5)))
    # While graphs are captured the memory holds what any model takes, and not what it held before.
    assert not any(x.any() for x in seen)
    served.ask(np.full((8, 4), 9))
    x = np.arange(12).reshape(3, 4)
    seen.clear()
    (first, second) = served.ask(x[:2], x[2:])
    assert np.array_equal(first["y"], x[:2] + 1)
    assert np.array_equal(second["y"], x[2:] + 1)
    # Neither what a former batch has left nor zeros.
    assert np.array_equal(seen[0], np.concatenate([x, x[2:]]))
    served.calls.clear()
    served.ask(x[:2])
    assert "cudaGraphLaunch" not in served.names()


def test_graph_that_cannot_be_captured_is_left_out_with_a_warning(tmp_path: Path) -> None:
    served = Served(tmp_path, fails={"cudaStreamEndCapture": 901}, optimization=cuda_graphs(spec(2)))
    assert any("CUDA graph of {'x': (2, 4)} is left out" in line for level, line in served.log if level == "log_warn")
    x = np.ones((2, 4))
    assert np.array_equal(served.ask(x)[0]["y"], x + 1)
    assert "cudaGraphLaunch" not in served.names()


def test_plan_that_cannot_be_captured_leaves_the_capture(tmp_path: Path) -> None:
    capturing = iter([True, False])
    never = {"IExecutionContext.execute_async_v3": lambda *_: next(capturing, True)}
    served = Served(tmp_path, changes=never, optimization=cuda_graphs(spec(2)))
    assert not served.cuda.capturing
    assert not {"graph", "executable graph"} & set(served.cuda.live.values())
    assert any("is left out: TensorRT cannot run the plan" in line for _, line in served.log)


@pytest.mark.parametrize("call", ["cudaStreamEndCapture", "cudaGraphInstantiateWithFlags", "cudaGraphUpload"])
def test_error_of_a_capture_is_not_left_for_tensorrt_to_find(tmp_path: Path, call: str) -> None:
    count = iter([2, 0])
    served = Served(tmp_path, fails={call: lambda: next(count, 0)}, optimization=cuda_graphs(spec(2)))
    assert any("is left out" in line for _, line in served.log)
    assert served.cuda.last_error == 0
    assert not {"graph", "executable graph"} & set(served.cuda.live.values())


def test_graph_that_the_gpu_has_no_room_for_leaves_the_others_in_their_places(tmp_path: Path) -> None:
    count = iter([2, 0])
    served = Served(
        tmp_path, fails={"cudaGraphUpload": lambda: next(count)}, optimization=cuda_graphs(spec(2), spec(4))
    )
    assert sorted(served.cuda.live.values()).count("executable graph") == 1
    for rows in (2, 4):
        x = np.arange(4 * rows).reshape(rows, 4)
        served.calls.clear()
        assert np.array_equal(served.ask(x)[0]["y"], x + 1)
        assert ("cudaGraphLaunch" in served.names()) == (rows == 4)
    served.model.finalize()
    assert served.cuda.live == {}
