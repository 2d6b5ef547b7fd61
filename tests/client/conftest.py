"""Clients of the tiny servers, and addresses where nothing answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from tritonpress_client import Classifier, Connection, QuestionAnswerer, Recommender
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
def answerer(task_server: TritonServer) -> Iterator[QuestionAnswerer]:
    """A client of the tiny question-answering model."""
    with QuestionAnswerer(task_server.grpc_url) as open_answerer:
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
