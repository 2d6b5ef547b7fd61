"""Configs that NVIDIA's native backend refuses are refused here, each with one line that says why."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from onnx import helper
from tiny_models import FP32, INT64, add_one, graph, write_model
from tritonclient.utils import InferenceServerException
from tritonpress_server import ModelRepositoryError, TritonServer

RAGGED_2D = r"allow_ragged_batch must have shape \[-1\]"
X = {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
FIXED_BATCH = graph(
    [helper.make_node("Add", ["x", "one"], ["y"])],
    {"x": (FP32, [2, 4])},
    {"y": (FP32, [2, 4])},
    {"one": np.array(1, np.float32)},
)
REFUSED: dict[str, tuple[bytes | None, dict[str, Any], str]] = {
    "corrupt": (b"not a graph", {}, "ONNX Runtime cannot load '.*corrupt/1/model.onnx': .*"),
    "missing": (None, {}, "unable to find '.*missing/1/model.onnx'"),
    "other_file": (add_one(), {"default_model_filename": "m.onnx"}, "unable to find '.*other_file/1/m.onnx'"),
    "wrong_type": (add_one(), {"input": [X | {"data_type": "TYPE_INT64"}]}, "has data_type TYPE_INT64, .* TYPE_FP32"),
    "wrong_output_type": (
        add_one(),
        {"output": [X | {"name": "y", "data_type": "TYPE_FP16"}]},
        "output 'y' has data_type TYPE_FP16, the graph has TYPE_FP32",
    ),
    "wrong_name": (add_one(), {"input": [X | {"name": "z"}]}, "input 'z' is not in the graph, which has x"),
    "wrong_output_name": (add_one(), {"output": [X | {"name": "z"}]}, "output 'z' is not in the graph, which has y"),
    "wrong_count": (add_one(), {"input": [X, X | {"name": "w"}]}, "the config has 2 inputs, the graph has 1: x"),
    "wrong_rank": (add_one(), {"input": [X | {"dims": [4, 4]}]}, r"input 'x' has dims \[-1, 4, 4\].*\[-1, 4\]"),
    "wrong_dims": (add_one(), {"input": [X | {"dims": [5]}]}, r"input 'x' has dims \[-1, 5\].*\[-1, 4\]"),
    "loose_output": (add_one(), {"output": [X | {"name": "y", "dims": [-1]}]}, r"output 'y' has dims \[-1, -1\]"),
    "fixed_batch": (FIXED_BATCH, {}, "max_batch_size 8 needs a dynamic first dimension"),
    "ragged_2d": (
        add_one(),
        {"input": [X | {"allow_ragged_batch": True}]},
        r"allow_ragged_batch must have shape \[-1\]",
    ),
    "bad_mode": (add_one(), {"parameters": {"execution_mode": 7}}, "'execution_mode' must be 0 .* or 1 .*, got 7"),
    "bad_count": (
        add_one(),
        {"parameters": {"intra_op_thread_count": "two"}},
        "'intra_op_thread_count' must be an integer, got 'two'",
    ),
    "bad_flag": (add_one(), {"parameters": {"enable_mem_arena": "maybe"}}, "must be true or false, got 'maybe'"),
    "gpu": (add_one(), {"instance_group": [{"kind": "KIND_GPU", "count": 1}]}, "GPU"),
}


@pytest.fixture(scope="module")
def empty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that has loaded none of the refused models yet."""
    folder = tmp_path_factory.mktemp("refused")
    for name, (model, config, _) in REFUSED.items():
        write_model(folder, name, model, **config)
    write_model(folder, "good", add_one())
    with TritonServer(folder, models=()) as server:
        yield server


def test_a_model_whose_warm_up_fails_is_named(tmp_path: Path) -> None:
    empty_table = graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        {"x": (INT64, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
        {"table": np.zeros(0, np.float32)},
    )
    zeros = {"data_type": "TYPE_INT64", "dims": [4], "zero_data": True}
    write_model(
        tmp_path,
        "lookup",
        empty_table,
        input=[X | {"data_type": "TYPE_INT64"}],
        model_warmup=[{"name": "zeros", "batch_size": 1, "inputs": {"x": zeros}}],
    )
    # Triton 24.10 refuses it or crashes, as its threads happen to run.
    with pytest.raises(ModelRepositoryError, match=r"model 'lookup' (failed to load: .*warmup|made Triton crash)"):
        TritonServer(tmp_path, log_path=tmp_path / "triton.log").start()


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_at_load(empty_server: TritonServer, name: str) -> None:
    with (
        grpcclient.InferenceServerClient(empty_server.grpc_url) as client,
        pytest.raises(InferenceServerException, match=REFUSED[name][2]),
    ):
        client.load_model(name)


def test_a_good_model_loads_beside_them(empty_server: TritonServer) -> None:
    with grpcclient.InferenceServerClient(empty_server.grpc_url) as client:
        client.load_model("good")
    assert empty_server.served_models() == [("good", "1")]


def test_the_start_fails_and_names_model_and_reason(tmp_path: Path) -> None:
    write_model(tmp_path, "greedy", add_one(), dynamic_batching={"preferred_batch_size": [16]})
    write_model(tmp_path, "corrupt", b"not a graph")
    write_model(tmp_path, "good", add_one())
    typo = write_model(tmp_path, "typo", add_one()) / "config.pbtxt"
    typo.write_text(typo.read_text() + "max_batchsize: 4")
    server = TritonServer(tmp_path, log_path=tmp_path / "triton.log")
    with pytest.raises(ModelRepositoryError, match="model 'corrupt' failed to load: ") as refusal:
        server.start()
    assert "\n" not in str(refusal.value)
    assert "also failed: greedy, typo" in str(refusal.value)
    shutil.rmtree(tmp_path / "corrupt")
    with pytest.raises(ModelRepositoryError, match=r"model 'greedy' failed to load: .*preferred size"):
        server.start()
    shutil.rmtree(tmp_path / "greedy")
    with pytest.raises(ModelRepositoryError, match=r"model 'typo' failed to load: .*no field named .max_batchsize."):
        server.start()
    assert server.pid == 0
