"""The `tensorrt` backend on the doubles of TensorRT and CUDA: which calls it makes, and which way the data take.

What is shown is what the doubles can show (`recorded_tensorrt.py`, `recorded_cuda.py`, `computed_plan.py`); that a GPU
does the same is for `tests/gpu/test_tensorrt_backend.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded_cuda
import recorded_tensorrt
from computed_plan import ComputedPlan
from hypothesis import given, settings
from hypothesis import strategies as st
from served_plan import Served
from stub_stand_in import Request, TritonError, answered
from tensorrt_configs import any_width, cuda_graphs, spec


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
