"""The bytes that the load sends are the messages that clients send, as a server receives them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2
from tritonpress_client import wire as client_wire
from tritonpress_loadtests.wire import METHOD, encoded_request

INPUTS = {"QUESTION": "Where is Zoë's 東京 lamp?", "CONTEXT": ""}
OUTPUTS = ("ANSWER", "SCORE")


class _Endpoint(grpc.GenericRpcHandler):
    """Keeps the bytes of each request, and answers nothing to it."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []

    def service(self, handler_call_details: Any) -> Any:
        def keep(request: bytes, context: Any) -> bytes:
            self.received.append((handler_call_details.method, request))
            return b""

        return grpc.unary_unary_rpc_method_handler(keep)


@pytest.fixture
def endpoint() -> Iterator[tuple[str, _Endpoint]]:
    """The address of a server, and what it has received."""
    kept = _Endpoint()
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[kept])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", kept
    server.stop(None).wait()


def test_tritonclient_sends_the_same(endpoint: tuple[str, _Endpoint]) -> None:
    url, kept = endpoint
    inputs = []
    for name, text in INPUTS.items():
        inputs.append(tritonclient.grpc.InferInput(name, [1, 1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([[text.encode()]], object))
    outputs = [tritonclient.grpc.InferRequestedOutput(name) for name in OUTPUTS]
    with tritonclient.grpc.InferenceServerClient(url) as client:
        client.infer("answers", inputs, outputs=outputs)
    ((method, received),) = kept.received
    assert method == METHOD
    assert service_pb2.ModelInferRequest.FromString(received) == service_pb2.ModelInferRequest.FromString(
        encoded_request("answers", INPUTS, OUTPUTS)
    )


def test_our_client_sends_the_same() -> None:
    request = client_wire.infer_request("answers", OUTPUTS)
    for name, text in INPUTS.items():
        client_wire.add_text(request, name, [text.encode()])
    assert request.SerializeToString() == encoded_request("answers", INPUTS, OUTPUTS)
