"""The compose file's proxy before the embedded Triton, by gRPC: what it lets through, and what it does not."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from caddy import Proxy, running
from certificates import Certificates
from tritonclient.grpc import service_pb2 as pb
from tritonpress_client import AccessDeniedError, Connection, InvalidInputError, ServerError
from tritonpress_server import TritonServer

NAME = "recommendation"
SERVICE = "/inference.GRPCInferenceService/"
LONGEST_TEXT = 8192
"""Bytes that the tiny recipe's step takes of a query."""
MAX_CONCURRENT_STREAMS, MAX_FRAME_BYTES = 3, 1 << 14
"""RFC 9113, 6.5.2 and 4.2."""


@pytest.fixture
def channel(proxy: Proxy) -> Iterator[grpc.Channel]:
    credentials = grpc.ssl_channel_credentials(proxy.authority.read_bytes())
    with grpc.secure_channel(proxy.url, credentials) as channel:
        yield channel


def queries(*texts: str) -> dict[str, Any]:
    return {"QUERY": np.array([[text] for text in texts], object)}


def called(channel: grpc.Channel, method: str, message: bytes, **options: Any) -> grpc.RpcError | bytes:
    """Returns the answer to a call, or why there is none."""
    try:
        return bytes(channel.unary_unary(method)(message, timeout=60, **options))
    except grpc.RpcError as error:
        return error


def test_answers_are_those_of_the_server(proxy: Proxy, tiny_server: TritonServer) -> None:
    with (
        Connection(proxy.url, options=proxy.options(), timeout_s=60) as before,
        Connection(tiny_server.grpc_url, timeout_s=60) as behind,
    ):
        assert before.ready()
        assert before.model_metadata(NAME) == behind.model_metadata(NAME)
        for texts in (("a", "another"), ("x" * LONGEST_TEXT,) * 8):
            answers = [connection.infer(NAME, queries(*texts)) for connection in (before, behind)]
            assert answers[0].keys() == answers[1].keys()
            for name, value in answers[0].items():
                np.testing.assert_array_equal(value, answers[1][name])
        with pytest.raises(InvalidInputError, match="QUERY"):
            before.infer(NAME, {"QUERY": np.zeros((1, 1), np.float32)})


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("ServerLive", pb.ServerLiveRequest()),
        ("ServerReady", pb.ServerReadyRequest()),
        ("ServerMetadata", pb.ServerMetadataRequest()),
        ("ModelReady", pb.ModelReadyRequest(name=NAME)),
        ("ModelMetadata", pb.ModelMetadataRequest(name=NAME)),
        ("ModelConfig", pb.ModelConfigRequest(name=NAME)),
    ],
)
def test_health_metadata_and_configs_are_open(channel: grpc.Channel, method: str, message: Any) -> None:
    assert isinstance(called(channel, SERVICE + method, message.SerializeToString()), bytes)


def test_health_of_grpc_itself_is_open(channel: grpc.Channel) -> None:
    # field 1, status: 1, SERVING
    assert called(channel, "/grpc.health.v1.Health/Check", b"") == b"\x08\x01"


@pytest.mark.parametrize(
    "method",
    [
        f"{SERVICE}RepositoryIndex",
        f"{SERVICE}RepositoryModelLoad",
        f"{SERVICE}RepositoryModelUnload",
        f"{SERVICE}ModelStatistics",
        f"{SERVICE}ModelStreamInfer",
        f"{SERVICE}SystemSharedMemoryStatus",
        f"{SERVICE}SystemSharedMemoryRegister",
        f"{SERVICE}CudaSharedMemoryStatus",
        f"{SERVICE}TraceSetting",
        f"{SERVICE}LogSettings",
        f"{SERVICE}ModelInfer/",
        f"{SERVICE}ModelInfer/../RepositoryIndex",
        f"{SERVICE}%52epositoryIndex",
        f"/{SERVICE}RepositoryIndex",
        "/inference.grpcinferenceservice/RepositoryIndex",
        "/grpc.health.v1.Health/Watch",
        "/v2/models/recommendation/infer",
        "/v2/repository/index",
    ],
)
def test_all_else_is_refused_by_the_proxy(channel: grpc.Channel, method: str) -> None:
    refusal = called(channel, method, b"")
    assert isinstance(refusal, grpc.RpcError)
    assert refusal.code() == grpc.StatusCode.PERMISSION_DENIED
    assert refusal.details() == "not open through this proxy"


def test_client_is_told_what_is_closed(proxy: Proxy) -> None:
    with (
        Connection(proxy.url, options=proxy.options(), timeout_s=60) as connection,
        pytest.raises(AccessDeniedError, match="not open through this proxy"),
    ):
        connection.statistics()


@pytest.mark.parametrize("method", ["RepositoryIndex", "ModelStatistics", "LogSettings"])
def test_the_server_itself_would_have_answered(tiny_server: TritonServer, method: str) -> None:
    with grpc.insecure_channel(tiny_server.grpc_url) as channel:
        assert isinstance(called(channel, SERVICE + method, b""), bytes)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_no_compressed_request_is_let_through(channel: grpc.Channel, compression: grpc.Compression) -> None:
    message = pb.ModelReadyRequest(name=NAME * 100).SerializeToString()
    refusal = called(channel, f"{SERVICE}ModelReady", message, compression=compression)
    assert isinstance(refusal, grpc.RpcError)
    assert refusal.code() == grpc.StatusCode.PERMISSION_DENIED


def padded(size: int) -> bytes:
    """Returns a ServerReadyRequest of `size` bytes: it has no field, and what another message has is passed over."""
    overhead = len(pb.ModelReadyRequest(name="x" * size).SerializeToString()) - size
    message = pb.ModelReadyRequest(name="x" * (size - overhead)).SerializeToString()
    assert len(message) == size
    return message


@pytest.mark.parametrize("excess", [1, 1 << 20, 64 << 20])
def test_a_longer_request_than_any_is_refused_and_the_connection_goes_on(
    channel: grpc.Channel, proxy: Proxy, excess: int
) -> None:
    # gRPC puts five bytes before a message.
    refusal = called(channel, f"{SERVICE}ServerReady", padded(proxy.request_bytes - 5 + excess))
    assert isinstance(refusal, grpc.RpcError)
    # What the server says of a request that breaks off may be there before what the proxy says.
    if refusal.code() != grpc.StatusCode.INTERNAL:
        assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        longer = f"a request of more than {proxy.request_bytes} bytes is longer than any to these models"
        assert refusal.details() == longer
    ready = pb.ServerReadyRequest().SerializeToString()
    assert isinstance(called(channel, f"{SERVICE}ServerReady", ready), bytes)


def test_the_longest_request_reaches_the_server(channel: grpc.Channel, proxy: Proxy) -> None:
    assert isinstance(called(channel, f"{SERVICE}ServerReady", padded(proxy.request_bytes - 5)), bytes)


def test_client_is_told_of_a_longer_request(proxy: Proxy) -> None:
    with (
        Connection(proxy.url, options=proxy.options(), timeout_s=60) as connection,
        # The second one, where what the server says of a request that breaks off is there first.
        pytest.raises(
            (InvalidInputError, ServerError),
            match=rf"a request of more than {proxy.request_bytes} bytes|INTERNAL; .* Unable to parse request",
        ),
    ):
        connection.infer(NAME, queries("x" * proxy.request_bytes))


def test_a_connection_has_so_many_requests_at_a_time(proxy: Proxy) -> None:
    trusted = ssl.create_default_context(cafile=proxy.authority)
    trusted.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as plain,
        trusted.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        assert connection.selected_alpn_protocol() == "h2"
        # The preface of HTTP/2, and empty settings.
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        with connection.makefile("rb") as stream:
            header = stream.read(9)
            length, kind = int.from_bytes(header[:3]), header[3]
            assert (kind, length <= MAX_FRAME_BYTES) == (4, True)
            settings = dict(struct.iter_unpack(">HI", stream.read(length)))
    assert settings[MAX_CONCURRENT_STREAMS] == 250


def test_where_triton_has_tls_grpc_is_not_forwarded_around_it(
    tiny_repository: Path, tiny_server: TritonServer, certificates: Certificates, tmp_path: Path
) -> None:
    with (
        running(tiny_repository, tiny_server, certificates, tmp_path, "--grpc-tls", "mutual") as proxy,
        Connection(proxy.url, options=proxy.options(), timeout_s=60) as connection,
        pytest.raises(AccessDeniedError, match="not open through this proxy"),
    ):
        connection.infer(NAME, queries("a"))
