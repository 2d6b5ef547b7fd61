"""The embedded `openvino` backend: what it answers, batches and refuses, in the real server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from at_once import AT_ONCE
from tiny_models import CPU, add_one, executions, full_batches, infer, write_model
from tritonpress_server import ModelRepositoryError, TritonServer


def write(repository: Path, name: str, **config: Any) -> Path:
    folder = write_model(repository, name, None, **{"platform": "", "backend": "openvino", **config})
    openvino.save_model(openvino.Core().read_model(add_one()), str(folder / "1" / "model.xml"), compress_to_fp16=False)
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("repository")
    write(repository, "plain", parameters={"INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1", "no_such": "1"})
    write(repository, "batched", dynamic_batching={})
    write(repository, "together", **full_batches(6))
    write(
        repository,
        "whole",
        max_batch_size=0,
        input=[{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]}],
        output=[{"name": "y", "data_type": "TYPE_FP32", "dims": [-1, 4]}],
    )
    with TritonServer(repository, settings=AT_ONCE) as server:
        yield server.grpc_url


@pytest.mark.parametrize("model", ["plain", "batched", "whole"])
def test_answers(url: str, model: str) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(infer(url, model, {"x": x})["y"], x + 1)


def test_requests_share_an_execution_and_get_their_own_rows(url: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    xs = [np.full((rows, 4), rows, np.float32) for rows in (1, 3, 2)]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda x: infer(url, "together", {"x": x})["y"], xs))
    for x, answer in zip(xs, answers, strict=True):
        assert np.array_equal(answer, x + 1)
    assert executions(url, "together", rows=6) == (6, 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"parameters": {"HINT_BF16": "NO"}}, "'HINT_BF16' must be 'YES', got 'NO'"),
        ({"parameters": {"INFERENCE_NUM_THREADS": "two"}}, "must be a non-negative number, got 'two'"),
        ({"parameters": {"TARGET_DEVICE": "GPU"}}, "'TARGET_DEVICE' must be 'CPU' here, got 'GPU'"),
        ({"input": [{"name": "z", "data_type": "TYPE_FP32", "dims": [4]}]}, "has the inputs z, the model has x"),
        ({"input": [{"name": "x", "data_type": "TYPE_INT64", "dims": [4]}]}, "'x' must be TYPE_FP32, as the model"),
        ({"output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4, 4]}]}, "'y' must have 2 dimensions"),
        ({"default_model_filename": "other.xml"}, "unable to find"),
        ({"instance_group": CPU, "default_model_filename": "model.bin"}, "OpenVINO cannot load"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    write(tmp_path, "wrong", **config)
    with pytest.raises(ModelRepositoryError) as raised, TritonServer(tmp_path, settings=AT_ONCE):
        pass
    assert message in str(raised.value)
