"""Clients of the tiny servers, and addresses where nothing answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from at_once import AT_ONCE
from proxy import Proxy
from served_models import Served, write_models
from tritonpress_client import Classifier, Connection, QuestionAnswering, Recommender
from tritonpress_server import TritonServer


@pytest.fixture
def connection(tiny_server: TritonServer) -> Iterator[Connection]:
    """A connection to the tiny server."""
    with Connection(tiny_server.grpc_url) as open_connection:
        yield open_connection


@pytest.fixture
def recommender(tiny_server: TritonServer) -> Iterator[Recommender]:
    """A client of the tiny server's recommendation model."""
    with Recommender(tiny_server.grpc_url) as open_recommender:
        yield open_recommender


@pytest.fixture
def answerer(task_server: TritonServer) -> Iterator[QuestionAnswering]:
    """A client of the tiny question-answering model."""
    with QuestionAnswering(task_server.grpc_url) as open_answerer:
        yield open_answerer


@pytest.fixture
def classifier(task_server: TritonServer) -> Iterator[Classifier]:
    """A client of the tiny classification model."""
    with Classifier(task_server.grpc_url) as open_classifier:
        yield open_classifier


@pytest.fixture
def unreachable_url() -> Iterator[str]:
    """An address that refuses connections: the port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names and their addresses, which stand before DNS; one without any cannot be resolved."""
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if host not in known:
            return real(host, *arguments, **options)
        if not known[host]:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [entry for address in known[host] for entry in real(address, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Served]]:
    """Two servers, `one` and `two`, with a model that does what it is told; to be left as they are."""
    folder = tmp_path_factory.mktemp("client_servers")
    served = []
    with ExitStack() as stack:
        for name in ("one", "two"):
            repository = write_models(folder / name, name)
            server = stack.enter_context(
                TritonServer(repository, log_path=folder / f"{name}-triton.log", settings=AT_ONCE)
            )
            served.append(Served(server, repository, name))
        yield served[0], served[1]
        for each in served:
            each.kill()


@pytest.fixture
def proxies(servers: tuple[Served, Served]) -> Iterator[tuple[Proxy, Proxy]]:
    """A proxy in front of each of the two servers."""
    with Proxy(servers[0].url) as one, Proxy(servers[1].url) as two:
        yield one, two
