"""The embedded `tensorrt` backend on a GPU: plans that TensorRT has built here, served by the real Triton.

Needs a GPU, TensorRT from 8.5 on and cuda-python in the environment of the tests. The plans are y = x + 1, built from
TensorRT's own layers, so that every release takes them.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as grpcclient
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException
from tritonpress_server import ModelRepositoryError, TritonServer
from tritonpress_server.backends.tensorrt.cuda_calls import Cuda, PlanError, tensorrt

pytestmark = pytest.mark.gpu

Array = npt.NDArray[Any]
Bounds = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
DELAYED = {"max_queue_delay_microseconds": 200_000}
WIDTHS = (4, 6)


@pytest.fixture(scope="module")
def trt() -> Any:
    try:
        module = tensorrt(remedy="run on a machine with TensorRT")
        if not Cuda()("cudaGetDeviceCount"):
            pytest.skip("needs an NVIDIA GPU, got none")
    except PlanError as error:
        pytest.skip(f"needs a GPU, TensorRT and cuda-python: {error}")
    return module


def plan(trt: Any, profiles: Sequence[Bounds]) -> bytes:
    """A plan of y = x + 1 over (batch, width) FP32, with a profile for each of `profiles`."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    x = network.add_input("x", trt.DataType.FLOAT, (-1, -1))
    # TensorRT reads a weight when it builds, and does not keep it alive.
    weight = np.ones((1, 1), np.float32)
    one = network.add_constant((1, 1), weight).get_output(0)
    y = network.add_elementwise(x, one, trt.ElementWiseOperation.SUM).get_output(0)
    y.name = "y"
    network.mark_output(y)
    config = builder.create_builder_config()
    # No library beside TensorRT's own, which 8.5 would load for its core all the same.
    config.set_tactic_sources(0)
    core = getattr(getattr(trt, "PreviewFeature", None), "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805", None)
    if core is not None:
        config.set_preview_feature(core, True)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape("x", *shapes)
        config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    assert built is not None
    return bytes(built)


def write(repository: Path, name: str, content: bytes, **config: Any) -> None:
    fields: dict[str, Any] = {
        "name": name,
        "platform": "tensorrt_plan",
        "max_batch_size": 8,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1]}],
        "instance_group": [{"kind": "KIND_GPU", "count": 1, "profile": ["0", "1"]}],
        "dynamic_batching": DELAYED,
        **config,
    }
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.plan").write_bytes(content)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(pb.ModelConfig(**fields)))


def cuda_graphs() -> pb.ModelOptimizationPolicy:
    """Graphs of 1, 2, 3 to 4 and 5 to 8 rows at each width, as the generator asks for them."""
    optimization = pb.ModelOptimizationPolicy()
    optimization.cuda.graphs = True
    for width in WIDTHS:
        for least, most in ((1, 1), (2, 2), (3, 4), (5, 8)):
            spec = optimization.cuda.graph_spec.add(batch_size=most)
            spec.graph_lower_bound.batch_size = least
            spec.input["x"].dim.append(width)
            spec.graph_lower_bound.input["x"].dim.append(width)
    return optimization


@pytest.fixture(scope="module")
def content(trt: Any) -> bytes:
    return plan(trt, [((1, width), (8, width), (8, width)) for width in WIDTHS])


@pytest.fixture(scope="module")
def served(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("repository")
    write(repository, "plain", content)
    write(repository, "graphs", content, optimization=cuda_graphs())
    write(repository, "two", content, instance_group=[{"kind": "KIND_GPU", "count": 2, "profile": ["0", "1"]}])
    write(repository, "first", content, instance_group=[{"kind": "KIND_GPU", "count": 1}])
    zeros = {"x": {"data_type": "TYPE_FP32", "dims": [4], "zero_data": True}}
    write(repository, "warm", content, model_warmup=[{"name": "warm", "batch_size": 2, "inputs": zeros}])
    with TritonServer(repository, log_path=repository.with_name("triton.log")) as server:
        yield server


def ask(url: str, model: str, x: Array) -> Array:
    tensor = grpcclient.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    with grpcclient.InferenceServerClient(url) as client:
        answer: Array = client.infer(model, [tensor], client_timeout=60).as_numpy("y")
    return answer


def at_once(work: Callable[[Array], Array], xs: Sequence[Array]) -> list[Array]:
    start = threading.Barrier(len(xs))

    def one(x: Array) -> Array:
        start.wait()
        return work(x)

    with ThreadPoolExecutor(len(xs)) as pool:
        return list(pool.map(one, xs))


@pytest.mark.parametrize("model", ["plain", "graphs", "two", "warm"])
def test_every_batch_and_width_is_answered(served: TritonServer, model: str) -> None:
    for width in WIDTHS:
        for rows in range(1, 9):
            x = np.random.default_rng(rows).standard_normal((rows, width), np.float32)
            assert np.array_equal(ask(served.grpc_url, model, x), x + 1)


@pytest.mark.parametrize("model", ["plain", "graphs"])
def test_requests_share_executions_and_get_their_own_rows(served: TritonServer, model: str) -> None:
    def count() -> tuple[int, int]:
        with grpcclient.InferenceServerClient(served.grpc_url) as client:
            (statistics,) = client.get_inference_statistics(model).model_stats
        return statistics.inference_count, statistics.execution_count

    before = count()
    xs = [np.full((rows, 4), number, np.float32) for number, rows in enumerate((1, 2, 3, 1))]
    for x, answer in zip(xs, at_once(lambda x: ask(served.grpc_url, model, x), xs), strict=True):
        assert np.array_equal(answer, x + 1)
    after = count()
    assert after[0] - before[0] == 7
    assert after[1] - before[1] < 4


def test_graphs_are_captured(served: TritonServer) -> None:
    log = served.log_path.read_text() if served.log_path else ""
    assert re.search(r"graphs_0\S*: TensorRT \S+, optimization profiles \[0, 1\], 8 CUDA graphs", log)
    assert "is left out" not in log


def test_shape_outside_the_profiles_is_refused_and_others_are_served(served: TritonServer) -> None:
    def one(x: Array) -> Array:
        try:
            return ask(served.grpc_url, "plain", x)
        except InferenceServerException as error:
            assert "no optimization profile among 0, 1 holds x [1, 5]" in str(error)
            return np.zeros(0)

    xs = [np.ones((1, width), np.float32) for width in (4, 5, 6)]
    assert [answer.size for answer in at_once(one, xs)] == [4, 0, 6]


def test_instance_without_profiles_has_the_first(served: TritonServer) -> None:
    x = np.ones((2, 4), np.float32)
    assert np.array_equal(ask(served.grpc_url, "first", x), x + 1)
    with pytest.raises(InferenceServerException, match="must have from 4 to 4 elements in dimension 1"):
        ask(served.grpc_url, "first", np.ones((2, 6), np.float32))


def test_memory_of_the_gpu_is_given_back(served: TritonServer) -> None:
    cuda = Cuda()

    def free_bytes() -> int:
        return int(cuda("cudaMemGetInfo")[0])

    with grpcclient.InferenceServerClient(served.grpc_url) as client:
        before = free_bytes()
        for _ in range(5):
            client.unload_model("graphs")
            client.load_model("graphs")
            assert np.array_equal(ask(served.grpc_url, "graphs", np.ones((1, 4), np.float32)), np.full((1, 4), 2))
    # An instance that was unloaded ends when it has finished; one that stays keeps its CUDA context, hundreds of MiB.
    deadline = time.monotonic() + 30
    while free_bytes() < before - (64 << 20):
        assert time.monotonic() < deadline, "the memory of unloaded instances is not given back"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda data: b"no plan" * 100, {}, r"the plan cannot be loaded by TensorRT .* here \(.*\); build it again"),
        (lambda data: data[: len(data) // 2], {}, "the plan cannot be loaded by TensorRT"),
        (lambda data: data, {"max_batch_size": 9}, "max_batch_size must be at most 8"),
        (lambda data: data, {"instance_group": [{"kind": "KIND_GPU", "profile": ["2"]}]}, "0 to 1, got '2'"),
        (lambda data: data, {"default_model_filename": "other.plan"}, "unable to find"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(
    content: bytes, tmp_path: Path, change: Callable[[bytes], bytes], config: dict[str, Any], message: str
) -> None:
    write(tmp_path / "models", "wrong", change(content), **config)
    with pytest.raises(ModelRepositoryError, match=message) as raised, TritonServer(tmp_path / "models"):
        pass
    assert "\n" not in str(raised.value)
