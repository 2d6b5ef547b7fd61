"""The connection: tensors both ways, what the server says of itself, and every error with its class and its words."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from at_once import AT_ONCE
from counted import counted, settled
from tritonpress_client import (
    Connection,
    DeadlineExceededError,
    InvalidInputError,
    ModelUnavailableError,
    Options,
    ServerError,
    ServerUnreachableError,
    TritonpressError,
)
from tritonpress_client.errors import translated
from tritonpress_server import Settings, TritonServer

MODEL = "recommendation"


def column(*values: object) -> np.ndarray[Any, Any]:
    """Returns the values as (n, 1) BYTES."""
    return np.array([[value] for value in values], dtype=object)


def test_answers_come_by_name_with_their_shapes_and_types(connection: Connection) -> None:
    answer = connection.infer(MODEL, {"QUERY": column("red lamp", "blue chair")})
    assert set(answer) == {"ITEM_ID", "SCORE"}
    assert answer["ITEM_ID"].shape == answer["SCORE"].shape == (2, 10)
    assert answer["SCORE"].dtype == np.float32
    assert all(isinstance(item, bytes) for item in answer["ITEM_ID"].flat)


def test_only_the_outputs_asked_for_come(connection: Connection) -> None:
    assert set(connection.infer(MODEL, {"QUERY": column("red lamp")}, ["SCORE"])) == {"SCORE"}


def test_bytes_str_and_fixed_width_text_are_the_same(connection: Connection) -> None:
    inputs = [column("red lamp"), column(b"red lamp"), np.array([["red lamp"]]), np.array([[b"red lamp"]])]
    answers = [connection.infer(MODEL, {"QUERY": value})["ITEM_ID"].tolist() for value in inputs]
    assert all(answer == answers[0] for answer in answers)


def test_threads_share_a_connection(connection: Connection) -> None:
    answers: list[list[Any]] = []

    def ask() -> None:
        answers.extend(connection.infer(MODEL, {"QUERY": column("red lamp")})["ITEM_ID"].tolist() for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    assert all(answer == answers[0] for answer in answers)


def test_the_server_says_who_it_is(connection: Connection) -> None:
    assert connection.server_metadata().version.startswith("2.")
    assert connection.ready()
    assert connection.ready(MODEL)
    assert not connection.ready("no_such_model")
    models = connection.models()
    assert MODEL in [model.name for model in models]
    assert all(model.ready for model in models)


def test_metadata_holds_the_contract(connection: Connection) -> None:
    metadata = connection.model_metadata(MODEL)
    assert metadata.max_batch_size == 8
    assert metadata.inputs["QUERY"].datatype == "BYTES"
    assert metadata.outputs["SCORE"].datatype == "FP32"
    assert metadata.outputs["ITEM_ID"].shape == (-1, 10)


def test_statistics_subtract(connection: Connection) -> None:
    before = settled(connection, MODEL)
    for _ in range(3):
        connection.infer(MODEL, {"QUERY": column("red lamp", "blue chair")})
    spent = counted(connection, MODEL, 3, before)
    assert spent.success.count == 3
    assert spent.inference_count == 6
    assert spent.batch_sizes == {2: 3}
    assert spent.success.mean_us > spent.compute_infer.mean_us > 0
    steps = {entry.name for entry in connection.statistics()} - {MODEL}
    assert steps
    assert all(name.startswith(f"{MODEL}_") for name in steps)


def test_statistics_of_different_models_do_not_subtract(connection: Connection) -> None:
    first, second, *_ = connection.statistics()
    with pytest.raises(ValueError, match="cannot subtract"):
        _ = first - second


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ({"QUERY": ["red lamp"]}, None, "must be a numpy array, got list"),
        ({"QUERY": column(3)}, None, "must hold bytes or str, got int"),
        ({"QUERY": column(None)}, None, "must hold bytes or str, got NoneType"),
        ({"QUERY": column("\ud800")}, None, "cannot be encoded as UTF-8"),
        ({"QUERY": np.zeros((1, 1), complex)}, None, "dtype complex128, which Triton does not know"),
        ({"QUERY": np.zeros((1, 1), np.float32)}, None, "data-type is 'FP32'"),
        ({"QUERY": column("a").reshape(1, 1, 1)}, None, "unexpected shape"),
        ({"QUERY": column(*["a"] * 9)}, None, "batch-size must be <= 8"),
        ({"TEXT": column("a")}, None, "unexpected inference input 'TEXT'"),
        ({"QUERY": column("a")}, ["LABEL"], "unexpected inference output 'LABEL'"),
    ],
)
def test_bad_tensors_are_refused(connection: Connection, inputs: Any, outputs: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        connection.infer(MODEL, inputs, outputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8001", "127.0.0.1", "127.0.0.1:", "", "a b:1", 8001, None])
def test_bad_addresses_are_refused_before_any_call(url: Any) -> None:
    with pytest.raises(InvalidInputError, match="must be HOST:PORT"):
        Connection(url)


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan"), "5", None])
def test_deadlines_are_finite(timeout_s: Any) -> None:
    with pytest.raises(InvalidInputError, match="`timeout_s` must be a finite number"):
        Connection("127.0.0.1:8001", timeout_s=timeout_s)


def test_an_unreachable_server_is_named_with_the_remedy(unreachable_url: str) -> None:
    with Connection(unreachable_url) as connection, pytest.raises(ServerUnreachableError) as caught:
        connection.infer(MODEL, {"QUERY": column("a")})
    message = str(caught.value)
    assert unreachable_url in message
    assert "tritonpress-serve" in message
    assert "gRPC says: failed to connect" in message
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert (caught.value.target, caught.value.model) == (unreachable_url, MODEL)


def test_tritons_http_port_is_no_grpc(tiny_server: TritonServer) -> None:
    with Connection(tiny_server.http_url) as connection, pytest.raises(ServerUnreachableError, match="gRPC endpoint"):
        connection.server_metadata()


def test_a_missing_model_is_named_with_the_remedy(connection: Connection) -> None:
    for call in (
        lambda: connection.infer("no_such_model", {"QUERY": column("a")}),
        lambda: connection.model_metadata("no_such_model"),
        lambda: connection.statistics("no_such_model"),
    ):
        with pytest.raises(ModelUnavailableError, match=r"'no_such_model' .* `tritonpress-query health") as caught:
            call()
        assert caught.value.model == "no_such_model"


def test_a_deadline_is_kept(tiny_server: TritonServer) -> None:
    with (
        Connection(tiny_server.grpc_url, timeout_s=1e-4) as connection,
        pytest.raises(DeadlineExceededError, match=r"did not answer within 0\.0001 s; raise `timeout_s`"),
    ):
        connection.infer(MODEL, {"QUERY": column("a")})


def test_a_closed_connection_says_so(tiny_server: TritonServer) -> None:
    connection = Connection(tiny_server.grpc_url)
    connection.close()
    connection.close()
    with pytest.raises(InvalidInputError, match="is closed"):
        connection.ready()


def test_models_are_loaded_and_unloaded(tiny_repository: Path) -> None:
    with (
        TritonServer(tiny_repository, models=[], settings=AT_ONCE) as server,
        Connection(server.grpc_url, timeout_s=60) as connection,
    ):
        connection.load_model(MODEL)
        assert connection.ready(MODEL)
        assert connection.model_config(MODEL).parameters["build"].string_value
        connection.unload_model(MODEL)
        connection.unload_model("not there")
        with pytest.raises(ServerError, match="failed to load 'not there'"):
            connection.load_model("not there")
    with (
        TritonServer(tiny_repository, settings=Settings(model_control="none")) as server,
        Connection(server.grpc_url, timeout_s=60) as connection,
        pytest.raises(InvalidInputError, match="explicit model load / unload is not allowed"),
    ):
        connection.load_model(MODEL)


@pytest.mark.parametrize("priority", [-1, True, 1.0, 2**32])
def test_a_priority_that_cannot_be_is_refused(priority: object) -> None:
    with pytest.raises(InvalidInputError, match="`priority` must be an integer"):
        Options(priority=priority)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (
            "UNAVAILABLE",
            "Request for unknown model: 'a' version 1 is not at ready state",
            ModelUnavailableError,
        ),
        ("UNAVAILABLE", "Exceeds maximum queue size", ModelUnavailableError),
        ("UNAVAILABLE", "Request timeout expired", ModelUnavailableError),
        ("UNAVAILABLE", "Socket closed", ServerUnreachableError),
        ("UNIMPLEMENTED", "Received http2 header with status: 404", ServerUnreachableError),
        ("INTERNAL", "onnx runtime error 2:\nindices element out of data bounds", ServerError),
        ("CANCELLED", "", ServerError),
    ],
)
def test_what_cannot_be_provoked_here_is_translated_too(status: str, said: str, kind: type[TritonpressError]) -> None:
    original = grpc.aio.AioRpcError(grpc.StatusCode[status], grpc.aio.Metadata(), grpc.aio.Metadata(), said)
    error = translated(original, target="host:8001", model="a", timeout_s=5.0)
    assert type(error) is kind
    assert "host:8001" in str(error)
    assert "\n" not in str(error)


def test_a_forgotten_close_lets_the_process_end(tiny_server: TritonServer) -> None:
    program = (
        "import sys\n"
        "if sys.argv[2] == 'gevent':\n"
        "    from gevent import monkey; monkey.patch_all()\n"
        "    import grpc.experimental.gevent as g; g.init_gevent()\n"
        "from tritonpress_client import Connection\n"
        "connection = Connection(sys.argv[1])\n"
        "print(connection.ready())\n"
    )
    for mode in ("threads", "gevent"):
        command = [sys.executable, "-c", program, tiny_server.grpc_url, mode]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        assert done.stdout == "True\n"
