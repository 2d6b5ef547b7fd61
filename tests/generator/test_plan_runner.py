"""A plan of a few lengths answers batches of every length up to the longest; a machine without a driver is said.

What runs a plan is held to doubles of TensorRT and CUDA: that a failure leaves the stream and the GPU's memory usable.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_machines import INPUTS, Machine
from recorded_tensorrt import VERSIONS
from tiny_encoders import make, pairs, signature
from tritonpress_generator import export
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.plans.runner import Cuda, PlanError, Runner, fitting

MODEL = make("bert", export.ATTENTION, "all")
GIVES = signature(MODEL)
GRAPH = session_infer(export.export(MODEL, GIVES).SerializeToString())
PROFILES: list[dict[str, Any]] = [
    {"batch": [1, 4, 4], "length": [8, 8, 8]},
    {"batch": [1, 4, 4], "length": [24, 24, 24]},
    {"batch": [1, 1, 1], "length": [10, 48, 48]},
]


def plan(feed: dict[str, Any]) -> dict[str, Any]:
    """Answers as the graph, and nothing that is outside of the profiles."""
    shapes = {tensor.shape for tensor in feed.values()}
    ((batch, length),) = shapes
    held = (p["batch"][0] <= batch <= p["batch"][2] and p["length"][0] <= length <= p["length"][2] for p in PROFILES)
    if not any(held):
        raise PlanError(f"shape {[batch, length]}: no profile")
    return GRAPH(feed)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 48), min_size=1, max_size=4), st.integers(0, 9))
def test_every_length_is_answered(lengths: list[int], seed: int) -> None:
    feed = pairs(lengths, seed)
    run = fitting(plan, PROFILES, GIVES.of_tokens)
    if max(lengths) > (48 if len(lengths) == 1 else 24):
        with pytest.raises(PlanError, match=r"no profile of the plan holds it; widen optimization_profiles"):
            run(feed)
        return
    expected, got = GRAPH(feed), run(feed)
    present = feed["attention_mask"].astype(bool)
    for name, answer in expected.items():
        assert got[name].shape == answer.shape
        rows = present if name in GIVES.of_tokens else ...
        assert np.abs(got[name][rows] - answer[rows]).max() < 1e-5


def test_what_fits_is_not_filled_up() -> None:
    seen = []
    run = fitting(lambda feed: seen.append(feed["input_ids"].shape) or GRAPH(feed), PROFILES, GIVES.of_tokens)
    for lengths in ([8], [24, 3], [30], [9]):
        run(pairs(lengths))
    # Of one sequence the third profile takes every length from 10 on.
    assert seen == [(1, 8), (2, 24), (1, 30), (1, 10)]


@pytest.mark.parametrize("answer", [RuntimeError("Failed to dlopen\nlibcuda.so.1"), (35,)])
def test_machine_without_a_driver_is_said(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """cuda-python 12.6 raises where there is no libcuda, and returns an error where there is one and no GPU."""

    def count() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    package, cudart = ModuleType("cuda"), ModuleType("cuda.cudart")
    cudart.cudaGetDeviceCount = count  # type: ignore[attr-defined]
    package.cudart = cudart  # type: ignore[attr-defined]
    for name, module in (("cuda", package), ("cuda.cudart", cudart)):
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(PlanError, match=r"cudaGetDeviceCount: .*a GPU and its driver are needed") as raised:
        Cuda()("cudaGetDeviceCount")
    assert "\n" not in str(raised.value)


def ones(batch: int, length: int) -> dict[str, Any]:
    return dict.fromkeys(INPUTS, np.ones((batch, length), np.int64))


@pytest.mark.parametrize("version", VERSIONS)
def test_plan_is_run_in_the_profile_of_its_shape_and_freed(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    machine = Machine(monkeypatch, version=version)
    run = Runner(machine.trt, b"plan")
    for shape in ((1, 8), (4, 24), (2, 24), (3, 8)):
        assert np.array_equal(run(ones(*shape))["y"], np.full(shape, 2, np.float32))
    # A context has profile 0 from the start.
    set_ = machine.trt.made("IExecutionContext.set_optimization_profile_async")
    assert [number for number, _ in set_] == [1, 0]
    run.close()
    assert machine.cuda.live == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_graph_is_replayed_until_the_next_feed_and_freed(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    machine = Machine(monkeypatch, version=version)
    run = Runner(machine.trt, b"plan")
    for _ in range(3):
        run(ones(2, 8))
        run.capture()
        run.capture()
        machine.calls.clear()
        run.again(5)
        assert [name for name, _ in machine.calls].count("cudaGraphLaunch") == 5
        assert sorted(machine.cuda.live.values()) == ["device", "device", "device", "executable graph", "stream"]
    run(ones(2, 8))
    machine.calls.clear()
    run.again(1)
    assert "cudaGraphLaunch" not in [name for name, _ in machine.calls]
    run.capture()
    run.close()
    assert machine.cuda.live == {}


@pytest.mark.parametrize(
    ("fails", "change", "message"),
    [
        ({}, {"IExecutionContext.execute_async_v3": lambda *_: False}, "TensorRT cannot run the plan"),
        ({"cudaStreamEndCapture": 901}, {}, "cudaStreamEndCapture: CUDA reports 901"),
        ({"cudaGraphInstantiateWithFlags": 2}, {}, "cudaGraphInstantiateWithFlags: CUDA reports 2; free memory"),
    ],
)
def test_capture_that_fails_leaves_the_stream_as_it_was(
    monkeypatch: pytest.MonkeyPatch, fails: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    machine = Machine(monkeypatch)
    run = Runner(machine.trt, b"plan")
    before = run(ones(2, 8))
    kept = dict(machine.trt.answers)
    machine.trt.answers.update(change)
    machine.cuda.fails.update(fails)
    with pytest.raises(PlanError, match=message):
        run.capture()
    assert not machine.cuda.capturing
    # Which TensorRT would find after its next kernel, and call its own.
    assert machine.cuda.last_error == 0
    assert sorted(machine.cuda.live.values()) == ["device", "device", "device", "stream"]
    machine.trt.answers.update(kept)
    machine.cuda.fails.clear()
    assert np.array_equal(run(ones(2, 8))["y"], before["y"])
    run.capture()
    assert run.again(1) > 0


def test_gpu_without_memory_for_a_context_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, **{"ICudaEngine.create_execution_context": lambda: None})
    with pytest.raises(
        PlanError, match=r"TensorRT makes no execution context \(.*\); free memory of the GPU, or lower"
    ):
        Runner(machine.trt, b"plan")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("set_input_shape", r"input 'input_ids' of shape \[2, 24\] is refused \(TensorRT gave no reason\)"),
        ("set_optimization_profile_async", r"TensorRT refuses optimization profile 1 \(.*\); build the plan again"),
        ("set_tensor_address", r"tensor 'input_ids' has no place in the plan's context"),
    ],
)
def test_what_tensorrt_refuses_is_not_run(monkeypatch: pytest.MonkeyPatch, call: str, message: str) -> None:
    machine = Machine(monkeypatch)
    run = Runner(machine.trt, b"plan")
    machine.trt.answers[f"IExecutionContext.{call}"] = lambda *_: False
    with pytest.raises(PlanError, match=message):
        run(ones(2, 24))
    assert machine.trt.made("IExecutionContext.execute_async_v3") == []


def test_inputs_of_different_shapes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Runner(Machine(monkeypatch).trt, b"plan")
    with pytest.raises(PlanError, match=r"input 'attention_mask' of shape \[2, 24\] is refused .*must be of one shape"):
        run(ones(2, 8) | {"attention_mask": np.ones((2, 24), np.int32)})
