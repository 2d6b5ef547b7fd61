"""A repository of one model, and one real Triton that serves a model for each thing that the backend can do."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from at_once import AT_ONCE
from onnx import helper
from ragged_models import write_ragged_models
from tiny_models import FP32, INT64, STRING, add_one, graph, write_model
from tritonpress_server import TritonServer

DELAYED = {"max_queue_delay_microseconds": 200_000}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the one model `add_one`."""
    folder = tmp_path / "model_repo"
    write_model(folder, "add_one", add_one())
    return folder


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with a model for each thing that the backend can do."""
    folder = tmp_path_factory.mktemp("served")
    write_model(folder, "add_one", add_one(), dynamic_batching=DELAYED)
    write_model(
        folder,
        "plus_minus",
        graph(
            [helper.make_node("Add", ["x", "one"], ["plus"]), helper.make_node("Sub", ["x", "one"], ["minus"])],
            {"x": (FP32, ["batch", "width"])},
            {"plus": (FP32, ["batch", "width"]), "minus": (FP32, ["batch", "width"])},
            {"one": np.array(1, np.float32)},
        ),
        input=[{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}],
        output=[{"name": name, "data_type": "TYPE_FP32", "dims": [-1]} for name in ("plus", "minus")],
        dynamic_batching=DELAYED,
        parameters={
            "intra_op_num_threads": 2,
            "inter_op_thread_count": 0,
            "memory.enable_memory_arena_shrinkage": "cpu:0",
        },
        optimization={"graph": {"level": 99}},
        model_warmup=[
            {
                "name": "one",
                "batch_size": 1,
                "inputs": {"x": {"data_type": "TYPE_FP32", "dims": [3], "zero_data": True}},
            }
        ],
    )
    write_model(
        folder,
        "text",
        graph(
            [helper.make_node("Identity", ["x"], ["y"])], {"x": (STRING, ["batch", 1])}, {"y": (STRING, ["batch", 1])}
        ),
        input=[{"name": "x", "data_type": "TYPE_STRING", "dims": [1]}],
        output=[{"name": "y", "data_type": "TYPE_STRING", "dims": [1]}],
        dynamic_batching=DELAYED,
    )
    write_model(
        folder,
        "lookup",
        graph(
            [helper.make_node("Gather", ["table", "x"], ["y"])],
            {"x": (INT64, ["batch", 1])},
            {"y": (FP32, ["batch", 1])},
            {"table": np.arange(10, dtype=np.float32)},
        ),
        input=[{"name": "x", "data_type": "TYPE_INT64", "dims": [1]}],
        output=[{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}],
    )
    write_model(
        folder,
        "scalar_sum",
        graph([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], {"x": (FP32, ["n"])}, {"y": (FP32, [])}),
        max_batch_size=0,
        input=[{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}],
        output=[{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}],
    )
    matmul = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
        {"w": 2 * np.eye(4, dtype=np.float32)},
    )
    for threads in (1, 4):
        write_model(folder, f"threads_{threads}", matmul, parameters={"intra_op_thread_count": threads})
    write_ragged_models(folder)
    # What a generator leaves beside the models must not disturb Triton.
    (folder / "README.md").write_text("built here")
    (folder / ".staging" / "half").mkdir(parents=True)
    with TritonServer(folder, settings=AT_ONCE) as server:
        yield server
