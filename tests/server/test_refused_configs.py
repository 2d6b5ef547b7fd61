"""Configs that NVIDIA's native backend refuses are refused here, each with one line that says why."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from at_once import AT_ONCE
from onnx import helper
from ragged_models import ragged, scattered
from tiny_models import FP32, INT64, STRING, add_one, graph, write_model
from tritonclient.utils import InferenceServerException
from tritonpress_server import ModelRepositoryError, TritonServer

X = {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
FIXED_BATCH = graph(
    [helper.make_node("Add", ["x", "one"], ["y"])],
    {"x": (FP32, [2, 4])},
    {"y": (FP32, [2, 4])},
    {"one": np.array(1, np.float32)},
)
Y = {"name": "y", "data_type": "TYPE_FP32", "dims": [-1]}
COUNTED = graph(
    [helper.make_node("Identity", ["x"], ["y"])], {"x": (FP32, ["n"]), "counts": (INT64, ["m"])}, {"y": (FP32, ["n"])}
)
DEFAULTED = graph(
    [helper.make_node("Add", ["x", "w"], ["y"])],
    {"x": (FP32, ["n"]), "w": (FP32, [1])},
    {"y": (FP32, ["n"])},
    {"w": np.ones(1, np.float32)},
)
TEXT = graph([helper.make_node("Identity", ["x"], ["y"])], {"x": (STRING, ["n"])}, {"y": (STRING, ["n"])})


def _counted(**fields: Any) -> dict[str, Any]:
    """A config for `COUNTED` whose one batch input differs in `fields` from what Triton's core takes."""
    entry = {"kind": "BATCH_ELEMENT_COUNT", "target_name": ["counts"], "data_type": "TYPE_INT32", "source_input": ["x"]}
    return {
        "input": [ragged("x")],
        "output": [Y],
        "batch_input": [entry | fields],
        "batch_output": [scattered("y", "x")],
    }


def _scattered(dims: list[int], *, output: list[dict[str, Any]] | None = None, **fields: Any) -> dict[str, Any]:
    """A config for `COUNTED` without the batch input, whose one batch output differs in `fields`."""
    return {
        "input": [ragged("x"), ragged("counts", "TYPE_INT64")],
        "output": output or [Y | {"dims": dims}],
        "batch_output": [scattered("y", "x") | fields],
    }


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
    "ragged_and_optional": (
        DEFAULTED,
        {"max_batch_size": 0, "input": [ragged("x"), ragged("w") | {"optional": True}], "output": [Y]},
        "input 'w' must not be both optional and allow_ragged_batch; drop one of them",
    ),
    "counts_type": (COUNTED, _counted(), "batch_input 'counts' has data_type TYPE_INT32, the graph has TYPE_INT64"),
    "counts_two_targets": (
        COUNTED,
        _counted(target_name=["counts", "z"]),
        r"batch_input must have one target_name, got \['counts', 'z'\]; write one batch_input for each tensor",
    ),
    "counts_other_target": (COUNTED, _counted(target_name=["z"]), "batch_input 'z' is not in the graph"),
    "scatter_two_targets": (
        COUNTED,
        _scattered([-1], output=[Y, Y | {"name": "z"}], target_name=["y", "z"]),
        r"batch_output must have one target_name, got \['y', 'z'\]; write one batch_output for each tensor",
    ),
    "scatter_dims": (
        COUNTED,
        _scattered([-1, 2, -1]),
        r"batch_output 'y' must have dynamic dims only where source_input 'x' has dims, "
        r"got \[-1, -1, 2, -1\] for \[-1, -1\]",
    ),
    "scatter_text": (
        TEXT,
        {
            "input": [ragged("x", "TYPE_STRING")],
            "output": [Y | {"data_type": "TYPE_STRING"}],
            "batch_output": [scattered("y", "x")],
        },
        "batch_output 'y' must have a data_type of fixed size, got TYPE_STRING",
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


REFUSED_BY_THE_CORE = {
    "counts_int64": (_counted(data_type="TYPE_INT64"), "batch input data type must be TYPE_INT32 or TYPE_FP32"),
    "counts_two_sources": (_counted(source_input=["x", "x"]), "expects 1 source input, got 2"),
    "counts_no_source": (_counted(source_input=["z"]), "unknown source input name 'z'"),
    "scatter_two_sources": (_scattered([-1], source_input=["x", "counts"]), "expects 1 source input, got 2"),
    "scatter_no_source": (_scattered([-1], source_input=["z"]), "unknown source input name 'z'"),
    "scatter_no_target": (_scattered([-1], target_name=["z"]), "unknown target output name 'z'"),
}
"""Configs for `COUNTED` that reach no backend, with what Triton's core says."""


@pytest.fixture(scope="module")
def empty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that has loaded none of the refused models yet."""
    folder = tmp_path_factory.mktemp("refused")
    for name, (model, config, _) in REFUSED.items():
        write_model(folder, name, model, **config)
    write_model(folder, "good", add_one())
    with TritonServer(folder, models=(), settings=AT_ONCE) as server:
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
        TritonServer(tmp_path, log_path=tmp_path / "triton.log", settings=AT_ONCE).start()


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_at_load(empty_server: TritonServer, name: str) -> None:
    with (
        grpcclient.InferenceServerClient(empty_server.grpc_url) as client,
        pytest.raises(InferenceServerException, match=REFUSED[name][2]),
    ):
        client.load_model(name)


def test_the_core_refuses_what_the_backend_does_not_look_at(tmp_path: Path) -> None:
    for name, (config, _) in REFUSED_BY_THE_CORE.items():
        write_model(tmp_path, name, COUNTED, **config)
    with pytest.raises(ModelRepositoryError, match=r"model .counts_int64. failed to load: .*TYPE_FP32"):
        TritonServer(tmp_path, log_path=tmp_path / "triton.log", settings=AT_ONCE).start()
    log = (tmp_path / "triton.log").read_text()
    for name, (_, reason) in REFUSED_BY_THE_CORE.items():
        assert f"{reason} for {name}" in log


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
    server = TritonServer(tmp_path, log_path=tmp_path / "triton.log", settings=AT_ONCE)
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
