"""A short scenario over the tiny server, and one run of it that many tests read."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scenarios import write_scenario
from tritonpress_loadtests.results import Results
from tritonpress_loadtests.run import run
from tritonpress_server import TritonServer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of queries, for scenarios."""
    (tmp_path / "queries.jsonl").write_text('{"query": "red lamp", "kind": "search"}\n{"query": "a blue chair"}\n')
    return tmp_path


@pytest.fixture(scope="session")
def measured(tiny_server: TritonServer, tiny_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a run of the short scenario has written."""
    folder = tmp_path_factory.mktemp("measured")
    stages = [{"users": 1, "duration_s": 3}, {"users": 6, "duration_s": 3}]
    scenario = write_scenario(folder, request={"queries": str(tiny_sources / "queries.jsonl")}, stages=stages)
    events: list[dict[str, Any]] = []
    results: Results = run(scenario, tiny_server.grpc_url, folder / "out", progress=events.append)
    assert results["stages"]
    assert {event["event"] for event in events} == {"tick", "stage"}
    return folder / "out"


@pytest.fixture
def unused_url() -> Iterator[str]:
    """An address that refuses connections: the port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"
