"""The Python-hosted `onnxruntime` backend, through a real Triton."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_models import Array, executions, infer
from tritonclient.utils import InferenceServerException
from tritonpress_server import TritonServer


def _rows(*values: float) -> Array:
    return np.array(values, np.float32)[:, None] * np.ones((1, 4), np.float32)


def test_answers_a_batch(served: TritonServer) -> None:
    answer = infer(served.grpc_url, "plus_minus", {"x": _rows(1, 2, 3)})
    np.testing.assert_array_equal(answer["plus"], _rows(2, 3, 4))
    np.testing.assert_array_equal(answer["minus"], _rows(0, 1, 2))


def test_concurrent_requests_share_a_run_and_get_their_own_answers(served: TritonServer) -> None:
    batches = [_rows(*range(start, start + 1 + start % 3)) for start in range(16)]
    with ThreadPoolExecutor(len(batches)) as pool:
        answers = list(pool.map(lambda batch: infer(served.grpc_url, "add_one", {"x": batch})["y"], batches))
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(answer, batch + 1)
    sent = sum(len(batch) for batch in batches)
    rows, runs = executions(served.grpc_url, "add_one", rows=sent)
    assert rows == sent
    assert runs < len(batches)


def test_only_requested_outputs_come_back_though_requests_share_a_run(served: TritonServer) -> None:
    x = np.zeros((1, 5), np.float32)
    wanted: list[list[str] | None] = [["minus"], ["plus"], None]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda names: infer(served.grpc_url, "plus_minus", {"x": x}, outputs=names), wanted))
    assert [set(answer) for answer in answers] == [{"minus"}, {"plus"}, {"plus", "minus"}]
    assert {float(answer[name][0, 0]) for answer in answers for name in answer if name == "minus"} == {-1.0}


def test_strings_pass_in_and_out(served: TritonServer) -> None:
    texts = ["", "a\x00b", "Zürich 雪 🎿", "x" * 100_000]
    with ThreadPoolExecutor(len(texts)) as pool:
        sent = [np.array([[text.encode()]], object) for text in texts]
        answers = list(pool.map(lambda x: infer(served.grpc_url, "text", {"x": x})["y"], sent))
    assert [answer[0, 0].decode() for answer in answers] == texts


def test_bytes_that_are_no_utf8_are_refused_and_the_model_lives_on(served: TritonServer) -> None:
    with pytest.raises(InferenceServerException, match="onnx runtime error"):
        infer(served.grpc_url, "text", {"x": np.array([[b"\xff\xfe"]], object)})
    assert infer(served.grpc_url, "text", {"x": np.array([[b"ok"]], object)})["y"][0, 0] == b"ok"


def test_a_failing_run_refuses_its_requests_and_the_model_lives_on(served: TritonServer) -> None:
    with pytest.raises(InferenceServerException, match=r"onnx runtime error: .*indices element out of data bounds"):
        infer(served.grpc_url, "lookup", {"x": np.array([[99]])})
    assert infer(served.grpc_url, "lookup", {"x": np.array([[3]])})["y"][0, 0] == 3


def test_a_model_without_batching_and_a_scalar_output(served: TritonServer) -> None:
    answer = infer(served.grpc_url, "scalar_sum", {"x": np.arange(5, dtype=np.float32)})
    np.testing.assert_array_equal(answer["y"], [10.0])


def test_the_thread_count_reaches_onnx_runtime(served: TritonServer) -> None:
    assert _stub_threads(served, "threads_4") - _stub_threads(served, "threads_1") == 3


def test_settings_without_effect_are_warned_about(served: TritonServer) -> None:
    assert served.log_path is not None
    log = served.log_path.read_text()
    assert "parameter 'intra_op_num_threads' has no effect; write 'intra_op_thread_count'" in log
    assert "parameter 'inter_op_thread_count' has no effect below 1, got 0" in log
    assert "optimization.graph.level 99 has no effect" in log


def _stub_threads(server: TritonServer, model: str) -> int:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            if f"PPid:\t{server.pid}\n" in (process / "status").read_text() and f"/{model}/1/".encode() in arguments[1]:
                return len(list((process / "task").iterdir()))
        except (FileNotFoundError, ProcessLookupError):
            continue
    pytest.fail(f"no stub of {model}")
