"""The `tensorrt` backend in the real Triton and its real Python stub, on the doubles of TensorRT and CUDA.

What runs is the backend as it is, except that Triton gives no instance of KIND_GPU where there is no GPU: a file around
its `model.py` says so, and puts the doubles (`computed_plan.py`) where the modules are imported. That a GPU does the
same is for `tests/gpu/test_tensorrt_backend.py`.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from at_once import AT_ONCE
from google.protobuf import json_format
from tensorrt_configs import any_width, cuda_graphs, spec
from tiny_models import CPU, Array, executions, full_batches, infer, write_model
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException
from tritonpress_server import TritonServer, runtime

TESTS = Path(__file__).parent
DOUBLES = ("recorded_tensorrt.py", "tensorrt_names.json", "recorded_cuda.py", "cuda_names.json", "computed_plan.py")
WRAPPER = """
from pathlib import Path

import plan_model
from computed_plan import ComputedPlan
from cuda_calls import Cuda
from recorded_cuda import VERSIONS as CUDA, RecordedCuda
from recorded_tensorrt import VERSIONS

double = RecordedCuda(CUDA[-1])
plan = ComputedPlan(
    profiles=[{"x": ((1, width), (8, width), (8, width))} for width in (4, 6)],
    inputs={"x": ("FLOAT", (-1, -1))},
    outputs={"y": ("FLOAT", (-1, -1))},
)
plan_model.tensorrt = lambda *, remedy: plan.module(VERSIONS[-1], double, double.calls)
plan_model.Cuda = lambda: Cuda(double)


class TritonPythonModel(plan_model.TritonPythonModel):
    def initialize(self, args):
        self.left = Path(args["model_repository"]) / "left.txt"
        super().initialize({**args, "model_instance_kind": "GPU"})

    def execute(self, requests):
        double.calls.clear()
        responses = super().execute(requests)
        launched = sum(name == "cudaGraphLaunch" for name, _ in double.calls)
        plan_model.pb_utils.Logger.log_info(f"{len(requests)} requests, {launched} graphs launched")
        return responses

    def finalize(self):
        super().finalize()
        # Triton takes no more of its log by now.
        self.left.write_text(repr(double.live))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("tensorrt")
    backends = Path(shutil.copytree(runtime.OUR_BACKENDS, folder / "backends"))
    (backends / "tensorrt" / "model.py").rename(backends / "tensorrt" / "plan_model.py")
    (backends / "tensorrt" / "model.py").write_text(WRAPPER)
    for name in DOUBLES:
        shutil.copy(TESTS.parent / name, backends / "tensorrt" / name)
    optimization = cuda_graphs(spec(2), spec(8, least=5), spec(4, least=3, width=6))
    optimization["cuda"]["output_copy_stream"] = True
    zeros = {"x": {"data_type": "TYPE_FP32", "dims": [4], "zero_data": True}}
    (folder / "repository").mkdir()
    warmed: dict[str, Any] = {
        "dynamic_batching": {"max_queue_delay_microseconds": 200_000},
        "model_warmup": [{"name": "warm", "batch_size": 2, "inputs": zeros}],
    }
    # Triton counts a warm-up too.
    for name, config in {"plan": warmed, "plan_together": full_batches(8)}.items():
        model = write_model(
            folder / "repository",
            name,
            None,
            platform="tensorrt_plan",
            instance_group=[{**CPU[0], "profile": ["0", "1"]}],
            optimization=json_format.ParseDict(optimization, pb.ModelOptimizationPolicy()),
            **any_width(),
            **config,
        )
        (model / "1" / "model.plan").write_bytes(b"plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "OUR_BACKENDS", backends)
        with TritonServer(folder / "repository", log_path=folder / "triton.log", settings=AT_ONCE) as server:
            yield server


def log(served: TritonServer) -> str:
    return served.log_path.read_text() if served.log_path else ""


def ask(served: TritonServer, xs: list[Array], model: str = "plan") -> list[Array | str]:
    """What each of requests that are sent at once gets."""
    start = threading.Barrier(len(xs))

    def one(x: Array) -> Array | str:
        start.wait()
        try:
            return np.asarray(infer(served.grpc_url, model, {"x": x})["y"])
        except InferenceServerException as error:
            return f"{error.status()}: {error.message()}"

    with ThreadPoolExecutor(len(xs)) as pool:
        return list(pool.map(one, xs))


def test_every_batch_and_width_is_answered(served: TritonServer) -> None:
    for width in (4, 6):
        for rows in range(1, 9):
            x = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
            assert np.array_equal(infer(served.grpc_url, "plan", {"x": x})["y"], x + 1)


def test_requests_share_an_execution_and_a_graph_and_get_their_own_rows(served: TritonServer) -> None:
    xs = [np.full((rows, 4), number, np.float32) for number, rows in enumerate((1, 2, 3, 2))]
    for x, answer in zip(xs, ask(served, xs, "plan_together"), strict=True):
        assert np.array_equal(answer, x + 1)
    assert executions(served.grpc_url, "plan_together", rows=8) == (8, 1)
    assert "4 requests, 1 graphs launched" in log(served)


def test_shape_outside_the_profiles_is_the_clients_fault_and_others_are_served(served: TritonServer) -> None:
    xs = [np.ones((1, width), np.float32) for width in (4, 5, 6)]
    four, five, six = ask(served, xs)
    assert np.array_equal(four, xs[0] + 1)
    assert np.array_equal(six, xs[2] + 1)
    assert isinstance(five, str)
    assert five.startswith("StatusCode.INVALID_ARGUMENT: no optimization profile among 0, 1 holds x [1, 5]")


def test_loading_is_said_and_unloading_frees_everything(served: TritonServer) -> None:
    text = log(served)
    assert "plan_0_0: optimization.cuda.output_copy_stream has no effect here" in text
    assert "optimization profiles [0, 1], 3 CUDA graphs, 384 bytes of pinned memory" in text
    with grpcclient.InferenceServerClient(served.grpc_url) as client:
        client.unload_model("plan")
    left = served.repository / "plan" / "left.txt"
    deadline = time.monotonic() + 30
    while not (left.exists() and left.read_text()):
        assert time.monotonic() < deadline, "the instance has not ended"
        time.sleep(0.05)
    assert left.read_text() == "{}"
