"""The `tensorrt` backend on the doubles of TensorRT and CUDA: which calls it makes, and which way the data take.

What is shown is what the doubles can show (`recorded_tensorrt.py`, `recorded_cuda.py`, `computed_plan.py`); that a GPU
does the same is for `tests/gpu/test_tensorrt_backend.py`.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cuda_calls
import numpy as np
import pytest
import recorded_cuda
import recorded_tensorrt
from computed_plan import ComputedPlan
from cuda_calls import Cuda, PlanError
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_cuda import RecordedCuda
from recorded_tensorrt import Calls
from stub_stand_in import Request, TritonError, TritonModelException, answered, load_backend
from tensorrt_configs import any_width, cuda_graphs, model_config, spec
from tritonpress_server.runtime import OUR_BACKENDS

NEWEST, NEWEST_CUDA = recorded_tensorrt.VERSIONS[-1], recorded_cuda.VERSIONS[-1]
BF16 = recorded_tensorrt.Recorded(NEWEST, {}).DataType.BF16
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


@pytest.mark.parametrize("version", recorded_tensorrt.VERSIONS)
@pytest.mark.parametrize("cuda_version", recorded_cuda.VERSIONS)
def test_requests_of_a_batch_share_an_execution(tmp_path: Path, version: str, cuda_version: str) -> None:
    served = Served(tmp_path, version=version, cuda_version=cuda_version)
    assert ("cudaSetDevice", (3,)) in served.loading
    one, two = np.ones((1, 4)), np.full((2, 4), 2)
    answers = served.ask(one, two)
    assert np.array_equal(answers[0]["y"], one + 1)
    assert np.array_equal(answers[1]["y"], two + 1)
    assert served.names() == [
        *("IExecutionContext.set_input_shape", "IExecutionContext.get_tensor_shape"),
        *("cudaMemcpyAsync", "IExecutionContext.execute_async_v3", "cudaMemcpyAsync"),
        *("cudaEventRecord", "cudaEventSynchronize"),
    ]
    assert served.calls[0][1] == ("x", (3, 4))
    # One copy each way, of all rows and no more.
    assert [arguments[2] for name, arguments in served.calls if name == "cudaMemcpyAsync"] == [48, 48]
    served.calls.clear()
    served.ask(one, two)
    # The shapes are those of the last execution.
    assert served.names()[0] == "cudaMemcpyAsync"


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


def test_each_profile_has_a_context_of_its_own(tmp_path: Path) -> None:
    plan = ComputedPlan(
        profiles=[{"x": ((1, length),) + ((8, length),) * 2} for length in (2, 4, 6)],
        inputs={"x": ("FLOAT", (-1, -1))},
        outputs={"y": ("FLOAT", (-1, -1))},
    )
    served = Served(tmp_path, plan, profile=["2", "0"], **any_width())
    made = [name for name, _ in served.loading if name == "ICudaEngine.create_execution_context"]
    assert len(made) == 2
    # Context of profile 0 has it by itself.
    given_profiles = [args[0] for name, args in served.loading if name.endswith("set_optimization_profile_async")]
    assert given_profiles == [2]
    answers = served.ask(np.ones((1, 6)), np.ones((2, 2)), np.ones((1, 4)), np.ones((3, 6)))
    assert answers[0]["y"].shape == (1, 6)
    assert answers[1]["y"].shape == (2, 2)
    assert np.array_equal(answers[3]["y"], np.full((3, 6), 2))
    # The plan's profile 1 is not this instance's.
    assert isinstance(answers[2], TritonError)
    assert answers[2].code == "INVALID_ARG"
    assert answers[2].message.startswith("no optimization profile among 0, 2 holds x [1, 4]")
    assert len([name for name in served.names() if name == "IExecutionContext.execute_async_v3"]) == 2


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
    assert any("is left out: TensorRT cannot run the plan" in line for _, line in served.log)


def test_refused_request_does_not_disturb_its_neighbours(tmp_path: Path) -> None:
    served = Served(tmp_path)
    x = np.ones((1, 4))
    answers = served.ask(x, np.ones((9, 4)), x + 1)
    assert isinstance(answers[1], TritonError)
    assert answers[1].code == "INVALID_ARG"
    assert "got 9" in answers[1].message
    assert np.array_equal(answers[0]["y"], x + 1)
    assert np.array_equal(answers[2]["y"], x + 2)


def test_error_of_an_execution_fails_its_requests(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.cuda.fails["cudaEventSynchronize"] = 700
    (answer,) = served.ask(np.ones((1, 4)))
    assert answer.code == "INTERNAL"
    assert answer.message.startswith("cudaEventSynchronize: CUDA reports 700; what uses the GPU must be")


def test_only_what_is_asked_for_is_copied_and_answered(tmp_path: Path) -> None:
    plan = ComputedPlan(
        outputs={"y": ("FLOAT", (-1, 4)), "z": ("FLOAT", (-1, 4))},
        compute=lambda inputs: {"y": inputs["x"] + 1, "z": inputs["x"] - 1},
    )
    output = [{"name": name, "data_type": "TYPE_FP32", "dims": [4]} for name in ("y", "z")]
    served = Served(tmp_path, plan, output=output)
    x = np.ones((1, 4), np.float32)
    one, both = answered(served.model, [Request({"x": x}, ["z"]), Request({"x": 2 * x}, ["y", "z"])])
    assert set(one) == {"z"}
    assert np.array_equal(one["z"], x - 1)
    assert np.array_equal(both["y"], 2 * x + 1)
    served.calls.clear()
    served.ask(x, outputs=["y"])
    assert served.names().count("cudaMemcpyAsync") == 2


def test_output_that_is_not_served_has_a_place_on_the_gpu_alone(tmp_path: Path) -> None:
    plan = ComputedPlan(
        outputs={"y": ("FLOAT", (-1, 4)), "z": ("FLOAT", (-1, 4))},
        compute=lambda inputs: {"y": inputs["x"] + 1, "z": inputs["x"] - 1},
    )
    served = Served(tmp_path, plan, optimization=cuda_graphs(spec(2)))
    assert sorted(served.cuda.live.values()).count("pinned") == 2
    for rows in (1, 2):
        x = np.arange(4 * rows).reshape(rows, 4)
        served.calls.clear()
        assert np.array_equal(served.ask(x)[0]["y"], x + 1)
        # A graph holds the copies of what is served.
        assert served.names().count("cudaMemcpyAsync") == {1: 2, 2: 0}[rows]


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


def test_gpu_that_is_lost_does_not_keep_an_instance_from_ending(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.cuda.fails["cudaStreamSynchronize"] = 700
    served.model.finalize()
    assert any("cudaStreamSynchronize: CUDA reports 700" in line for level, line in served.log if level == "log_warn")


def test_model_without_batches_runs_each_request_alone(tmp_path: Path) -> None:
    graph = {"batch_size": 0, "input": {"x": {"dim": ["2", "4"]}}}
    served = Served(tmp_path, max_batch_size=0, optimization=cuda_graphs(graph),
                    input=[{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]}],
                    output=[{"name": "y", "data_type": "TYPE_FP32", "dims": [-1, 4]}])  # fmt: skip
    x = np.arange(8).reshape(2, 4)
    answers = served.ask(x, x + 1, x[:1])
    for given_x, answer in zip((x, x + 1, x[:1]), answers, strict=True):
        assert np.array_equal(answer["y"], given_x + 1)
    assert served.names().count("cudaGraphLaunch") == 2
    assert served.names().count("IExecutionContext.execute_async_v3") == 1


@settings(deadline=None, max_examples=60)
@given(
    batches=st.lists(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([2, 3, 4])), min_size=1, max_size=5),
                     min_size=1, max_size=3),
    specs=st.lists(st.tuples(st.integers(1, 8), st.sampled_from([2, 4]), st.none() | st.integers(1, 8)), max_size=4),
)  # fmt: skip
def test_every_request_gets_its_own_answer_whatever_it_came_with(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]], specs: list[Any]
) -> None:
    plan = ComputedPlan(
        profiles=[{"x": ((1, length), (4, length), (8, length))} for length in (2, 4)],
        inputs={"x": ("FLOAT", (-1, -1))},
        outputs={"y": ("FLOAT", (-1, -1))},
    )
    graph_specs = [spec(b, least=None if low is None else min(low, b), width=length) for b, length, low in specs]
    optimization = cuda_graphs(*graph_specs) if graph_specs else {}
    served = Served(tmp_path_factory.mktemp("m"), plan, profile=["0", "1"], optimization=optimization, **any_width())
    count = 0
    for shapes in batches:
        xs = []
        for shape in shapes:
            xs.append(np.arange(count, count + np.prod(shape)).reshape(shape))
            count += xs[-1].size
        for x, answer in zip(xs, served.ask(*xs), strict=True):
            if x.shape[1] == 3:
                assert isinstance(answer, TritonError)
            else:
                assert np.array_equal(answer["y"], x + 1)
    served.model.finalize()
    assert served.cuda.live == {}


@pytest.mark.parametrize(
    ("plan", "changes", "config", "message"),
    [
        (None, {"Runtime.deserialize_cuda_engine": lambda *_: None}, {}, r"model\.plan': the plan cannot be loaded by"),
        (None, {"ICudaEngine.is_shape_inference_io": lambda _: True}, {}, "tensor 'x' of the plan holds a shape"),
        (None, {"ICudaEngine.get_tensor_dtype": lambda _: BF16}, {}, "must be among FLOAT, .*, got BF16"),
        (None, {"ICudaEngine.create_execution_context": lambda: None}, {}, "TensorRT makes no execution context"),
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
