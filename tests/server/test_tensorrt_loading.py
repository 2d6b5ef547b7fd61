"""What the `tensorrt` backend allocates, sets, says and frees, on the doubles of TensorRT and CUDA."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import cuda_calls
import numpy as np
import pytest
import recorded_cuda
import recorded_tensorrt
from computed_plan import ComputedPlan
from cuda_calls import Cuda, PlanError
from served_plan import NEWEST, Served
from stub_stand_in import TritonModelException
from tensorrt_configs import any_width, cuda_graphs, spec
from tritonpress_server.runtime import OUR_BACKENDS

BF16 = recorded_tensorrt.Recorded(NEWEST, {}).DataType.BF16


def test_everything_is_freed(tmp_path: Path) -> None:
    served = Served(tmp_path, optimization=cuda_graphs(spec(1), spec(8, least=5)))
    kinds = sorted(served.cuda.live.values())
    assert kinds == ["device"] * 2 + ["event"] + ["executable graph"] * 2 + ["pinned"] * 2 + ["stream"]
    served.ask(np.ones((1, 4)))
    served.model.finalize()
    assert served.cuda.live == {}


def test_buffers_are_as_large_as_the_largest_shape_of_the_instances_profiles(tmp_path: Path) -> None:
    wide = {"x": ((1, 6), (4, 6), (4, 6))}
    plan = ComputedPlan(
        profiles=[{"x": ((1, 4), (8, 4), (8, 4))}, wide], inputs={"x": ("FLOAT", (-1, -1))},
        outputs={"y": ("FLOAT", (-1, -1))},
    )  # fmt: skip
    for numbers, size in ((["0"], 128), (["1"], 96), (["0", "1"], 128)):
        served = Served(tmp_path, plan, profile=numbers, max_batch_size=4, **any_width())
        assert [arguments for name, arguments in served.loading if name == "cudaMalloc"] == [(size,)] * 2
        assert [arguments[0] for name, arguments in served.loading if name == "cudaHostAlloc"] == [size] * 2


def test_gpu_that_is_lost_does_not_keep_an_instance_from_ending(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.cuda.fails["cudaStreamSynchronize"] = 700
    served.model.finalize()
    assert any("cudaStreamSynchronize: CUDA reports 700" in line for level, line in served.log if level == "log_warn")


@pytest.mark.parametrize(
    ("plan", "changes", "config", "message"),
    [
        (None, {"Runtime.deserialize_cuda_engine": lambda *_: None}, {}, r"model\.plan': the plan cannot be loaded by"),
        (None, {"ICudaEngine.is_shape_inference_io": lambda _: True}, {}, "tensor 'x' of the plan holds a shape"),
        (None, {"ICudaEngine.get_tensor_dtype": lambda _: BF16}, {}, "must be among FLOAT, .*, got BF16"),
        (None, {"ICudaEngine.create_execution_context": lambda: None}, {}, "no execution context .*; free memory"),
        (None, {"IExecutionContext.get_tensor_shape": lambda _: (-1, 4)}, {}, "output 'y' must have a shape that"),
        (None, {}, {"default_model_filename": "other.plan"}, "unable to find '.*other.plan' for a GPU of compute .* 9"),
        (None, {}, {"max_batch_size": 9}, "max_batch_size must be at most 8"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_said_in_a_line(
    tmp_path: Path, plan: ComputedPlan | None, changes: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(TritonModelException) as raised:
        Served(tmp_path, plan, changes=changes, **config)
    assert re.search(message, str(raised.value))
    assert "\n" not in str(raised.value)


def test_gpu_without_memory_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(TritonModelException, match="cudaMalloc: CUDA reports 2; free memory of the GPU, or lower"):
        Served(tmp_path, fails={"cudaMalloc": 2})


def test_plan_of_another_builder_is_named_from_its_stamp(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.plan.json").write_text(json.dumps({"tensorrt": "9.1", "gpu": "a GPU"}))
    with pytest.raises(TritonModelException, match=r"built with TensorRT 9\.1 on a GPU cannot be loaded"):
        Served(tmp_path, changes={"Runtime.deserialize_cuda_engine": lambda *_: None})


@pytest.mark.parametrize(("value", "allowed"), [("true", True), ("no", False)])
def test_code_in_a_plan_runs_only_where_the_config_says_so(tmp_path: Path, value: str, allowed: bool) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.plan.json").write_text(json.dumps({"version_compatible": True}))
    served = Served(tmp_path, parameters={"version-compatible": {"string_value": value}})
    assert (("Runtime.engine_host_code_allowed", (True,)) in served.loading) == allowed


def test_machine_without_a_driver_is_said_in_a_line() -> None:
    class Driverless:
        """As cuda-python 12.6.2.post1 was seen where there is no driver."""

        def cudaGetDeviceCount(self) -> None:  # noqa: N802
            raise RuntimeError("Failed to dlopen libcuda.so.1")

    with pytest.raises(PlanError, match=r"cudaGetDeviceCount: Failed to dlopen libcuda\.so\.1; a GPU and its"):
        Cuda(Driverless())("cudaGetDeviceCount")


def test_runtime_that_tensorrt_does_not_make_is_said_in_a_line() -> None:
    """As TensorRT 8.5.3.1 was seen where there is no driver: a warning, and pybind11's error."""
    trt = recorded_tensorrt.Recorded(recorded_tensorrt.VERSIONS[0], {})
    messages = cuda_calls.Messages(trt)

    def runtime(logger: Any) -> None:
        logger.log(2, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    vars(trt)["Runtime"] = runtime
    with pytest.raises(PlanError) as raised:
        cuda_calls.load(trt, b"plan", None, messages)
    said = "TensorRT 8.5.3.1 makes no runtime here (CUDA initialization failure with error: 35); a GPU and its driver"
    assert str(raised.value).startswith(said)


def test_folder_that_is_named_tensorrt_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(PlanError, match=r"TensorRT is needed \(.*\); install it"):
            cuda_calls.tensorrt(remedy="install it")
    finally:
        sys.modules.pop("tensorrt", None)


def test_priority_and_waiting_reach_cuda(tmp_path: Path) -> None:
    served = Served(tmp_path, optimization={"priority": "PRIORITY_MAX", "cuda": {"busy_wait_events": True}})
    assert ("cudaStreamCreateWithPriority", (1, -5)) in served.loading
    assert ("cudaEventCreateWithFlags", (2,)) in served.loading
    served = Served(tmp_path)
    assert ("cudaStreamCreateWithPriority", (1, 0)) in served.loading
    assert ("cudaEventCreateWithFlags", (3,)) in served.loading


def test_what_tensorrt_says_is_in_the_log(tmp_path: Path) -> None:
    served = Served(tmp_path)
    logger = served.model.messages.logger
    logger.log(2, "a warning\nof two lines")
    logger.log(1, "an error")
    logger.log(3, "news")
    assert served.log[-2:] == [("log_warn", "TensorRT: a warning of two lines"), ("log_error", "TensorRT: an error")]


HOLDERS = {"engine": "ICudaEngine", "context": "IExecutionContext", "runtime": "Runtime"}


@pytest.mark.parametrize("version", recorded_tensorrt.VERSIONS)
@pytest.mark.parametrize("cuda_version", recorded_cuda.VERSIONS)
def test_bindings_have_every_name_that_is_used(version: str, cuda_version: str) -> None:
    names, cuda_names = recorded_tensorrt.NAMES[version], recorded_cuda.NAMES[cuda_version]
    used = 0
    for path in (OUR_BACKENDS / "tensorrt").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and re.fullmatch(r"cuda[A-Z]\w+", str(node.value)):
                assert node.value in cuda_names[""]
                used += 1
            if not isinstance(node, ast.Attribute) or node.attr in {"__version__", "__init__", "__path__"}:
                continue
            owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
            of = "" if owner == "trt" else HOLDERS.get(owner, owner)
            if re.fullmatch(r"cuda[A-Z]\w+", node.attr):
                assert any(node.attr in members for members in cuda_names.values()), node.attr
                used += 1
            elif of in names and (owner or of) and node.attr != "engine_host_code_allowed":
                assert node.attr in names[of], f"{of}.{node.attr}"
                used += 1
    assert used > 50
