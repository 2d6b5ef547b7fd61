"""Ragged batching of the Python-hosted `onnxruntime` backend, through a real Triton: alone, mixed, in clients' batches.

What is expected was read from NVIDIA's `backend_input_collector.cc` and `backend_output_responder.cc`.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from ragged_models import KINDS
from tiny_models import Array, executions, infer
from tritonclient.utils import InferenceServerException
from tritonpress_server import TritonServer

SHAPES = [(1, 4, 1), (2, 1, 3), (1, 0, 3), (3, 1, 1), (1, 1, 2)]
"""Of requests of eight rows in all, which fit one execution; their element counts differ."""


def _mixed(ask: Callable[[Any], Any], requests: Sequence[Any]) -> list[Any]:
    """The answers to requests sent at once, or the exceptions raised in their place."""
    with ThreadPoolExecutor(len(requests)) as pool:
        futures = [pool.submit(ask, request) for request in requests]
    return [future.exception() or future.result() for future in futures]


def _count_feed(shape: tuple[int, ...]) -> dict[str, Array]:
    return {"x": np.ones(shape, np.float32), "ones": np.ones((shape[0], 1), np.float32)}


def _batch_inputs(shapes: Sequence[tuple[int, ...]]) -> dict[str, list[Any]]:
    """What the batch inputs hold for an execution of requests of these shapes."""
    counts = [math.prod(shape) for shape in shapes]
    items = [list(shape[1:]) for shape in shapes for _ in range(shape[0])]
    return {
        "count": counts,
        "ends": [sum(counts[: i + 1]) for i in range(len(counts))],
        "bounds": [sum(counts[:i]) for i in range(len(counts) + 1)],
        "longest": [max(counts)],
        "item": items,
        "items": [size for item in items for size in item],
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_inputs_of_a_request_alone(served: TritonServer, shape: tuple[int, ...]) -> None:
    answer = infer(served.grpc_url, "counts", _count_feed(shape))
    expected = _batch_inputs([shape])
    assert answer.keys() == {f"{name}_out" for name in KINDS}
    for name, value in expected.items():
        rows = value if name == "item" else [value] * shape[0]
        np.testing.assert_array_equal(answer[f"{name}_out"], rows, err_msg=name)


def test_batch_inputs_count_requests_and_item_shapes_count_rows(served: TritonServer) -> None:
    answers = _mixed(lambda shape: infer(served.grpc_url, "counts_together", _count_feed(shape)), SHAPES)
    shape_of = {math.prod(shape): shape for shape in SHAPES}
    for shape, answer in zip(SHAPES, answers, strict=True):
        # All of them, in the execution's order.
        together = [shape_of[count] for count in answer["count_out"][0]]
        assert sorted(together) == sorted(SHAPES)
        expected = _batch_inputs(together)
        row = sum(other[0] for other in together[: together.index(shape)])
        for name, value in expected.items():
            rows = value[row : row + shape[0]] if name == "item" else [value] * shape[0]
            np.testing.assert_array_equal(answer[f"{name}_out"], rows, err_msg=name)
    assert executions(served.grpc_url, "counts_together", rows=8) == (8, 1)


def _scatter_feed(rows: int, length: int, sequences: int) -> dict[str, Array]:
    return {
        "x": np.arange(rows * length, dtype=np.float32).reshape(rows, length) + 100 * length,
        "lengths": np.arange(rows * sequences).reshape(rows, sequences) + 10 * length,
        "row_elements": np.zeros((rows, 2 * sequences), np.int8),
    }


REQUESTS = [(1, 1, 1), (1, 7, 3), (2, 3, 2), (1, 0, 0), (1, 5, 4), (2, 2, 1)]
"""Rows of a request, eight in all, and of each the elements of `x` and of `lengths`."""


def _check_scatter(request: tuple[int, int, int], answer: dict[str, Any]) -> None:
    feed = _scatter_feed(*request)
    token = feed["x"] + 1
    row = (feed["lengths"][..., None] * np.array([1, 10])).astype(np.float32)
    expected = {"token": token, "column": token[..., None], "flat_column": token, "row": row}
    expected["flat_row"] = row.reshape(feed["row_elements"].shape)
    assert answer.keys() == expected.keys()
    for name, value in expected.items():
        assert answer[name].shape == value.shape, name
        np.testing.assert_array_equal(answer[name], value, err_msg=name)


@pytest.mark.parametrize("request_", REQUESTS)
def test_outputs_are_scattered_to_a_request_alone(served: TritonServer, request_: tuple[int, int, int]) -> None:
    _check_scatter(request_, infer(served.grpc_url, "scatter", _scatter_feed(*request_)))


def test_outputs_are_scattered_to_the_requests_of_an_execution(served: TritonServer) -> None:
    answers = _mixed(lambda request: infer(served.grpc_url, "scatter_together", _scatter_feed(*request)), REQUESTS)
    for request, answer in zip(REQUESTS, answers, strict=True):
        _check_scatter(request, answer)
    assert executions(served.grpc_url, "scatter_together", rows=8) == (8, 1)


def test_only_requested_outputs_are_scattered(served: TritonServer) -> None:
    answer = infer(served.grpc_url, "scatter", _scatter_feed(1, 2, 3), outputs=["row"])
    assert {name: value.shape for name, value in answer.items()} == {"row": (1, 3, 2)}


def _cut(served: TritonServer, size: int, output: str, *, model: str = "cut") -> Array:
    x = np.arange(size, dtype=np.float32)[None]
    answer: Array = infer(served.grpc_url, model, {"x": x}, outputs=[output])[output]
    np.testing.assert_array_equal(answer, x)
    return answer


def test_a_result_too_short_for_the_scatter_is_refused_and_the_model_lives_on(served: TritonServer) -> None:
    with pytest.raises(
        InferenceServerException,
        match=r"failed to split output 'head' of shape \[5\]: it must have 6 elements up to the part \[1, 6\]",
    ) as refused:
        _cut(served, 6, "head")
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
    assert "\n" not in str(refused.value)
    _cut(served, 5, "head")


def test_a_result_too_short_fails_only_the_requests_whose_part_is_missing(served: TritonServer) -> None:
    answers = _mixed(lambda size: _cut(served, size, "head", model="cut_together"), [3, 3])
    assert sorted(isinstance(answer, InferenceServerException) for answer in answers) == [False, True]
    assert executions(served.grpc_url, "cut_together", rows=2) == (2, 1)


def test_what_nobody_takes_of_a_result_is_dropped_with_a_warning(served: TritonServer) -> None:
    for _ in range(2):
        _cut(served, 3, "twice")
    assert served.log_path is not None
    log = served.log_path.read_text()
    assert log.count("output 'twice' of shape [6] has 3 elements more than its requests take") == 1


def test_a_result_of_too_few_rows_is_refused_and_the_model_lives_on(served: TritonServer) -> None:
    with pytest.raises(InferenceServerException, match=r"failed to split output 'y' of shape \[2, 4\]"):
        infer(served.grpc_url, "few_rows", {"x": np.zeros((3, 4), np.float32)})
    two = np.zeros((2, 4), np.float32)
    answers = _mixed(lambda _: infer(served.grpc_url, "few_rows_together", {"x": two}), range(2))
    assert sorted(isinstance(answer, InferenceServerException) for answer in answers) == [False, True]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(infer(served.grpc_url, "few_rows", {"x": x})["y"], x)


def _look_up(served: TritonServer, model: str, indices: list[int]) -> Array:
    answer: Array = infer(served.grpc_url, model, {"x": np.array([indices], np.int64)})["y"]
    np.testing.assert_array_equal(answer, [indices])
    return answer


def test_a_request_that_fails_disturbs_no_other_execution(served: TritonServer) -> None:
    requests = [[1, 2], [99], [3], [4, 5, 6], [99, 1], [7]] * 3
    answers = _mixed(lambda indices: _look_up(served, "alone", indices), requests)
    for indices, answer in zip(requests, answers, strict=True):
        assert isinstance(answer, InferenceServerException) == (99 in indices)


def test_a_run_that_fails_fails_all_its_requests_as_natively_and_no_later_one(served: TritonServer) -> None:
    for answer in _mixed(lambda indices: _look_up(served, "ragged_lookup", indices), [[1, 2], [99], [3]]):
        with pytest.raises(InferenceServerException, match=r"onnx runtime error: .*indices element out of data bounds"):
            raise answer
    assert executions(served.grpc_url, "ragged_lookup", rows=3) == (3, 1)
    for answer in _mixed(lambda indices: _look_up(served, "ragged_lookup", indices), [[1, 2], [3], [4, 5]]):
        assert not isinstance(answer, BaseException)
