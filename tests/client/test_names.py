"""Names with many addresses: all are used, looked up anew, and what comes of one that cannot be resolved."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from served_models import Served, write_models
from tritonpress_client import (
    AsyncConnection,
    AsyncRecommender,
    Balancing,
    Connection,
    Options,
    Recommender,
    ServerUnreachableError,
)
from tritonpress_server import TritonServer
from waiting import until

Servers = tuple[Served, Served]


def test_all_addresses_of_a_name_are_used(servers: Servers, tmp_path: Path, names: dict[str, list[str]]) -> None:
    port = int(servers[0].url.rpartition(":")[2])
    repository = write_models(tmp_path / "second", "second", instances=1)
    server = TritonServer(repository, host="127.0.0.2", grpc_port=port, log_path=tmp_path / "log")
    server.start()
    names["triton.test"] = ["127.0.0.1"]
    try:
        options = Options(balancing=Balancing(resolve_s=0.2))
        with Recommender(f"dns:///triton.test:{port}", options=options) as recommender:

            def answered() -> set[str]:
                return {recommender.recommend(str(number))[1].item_id for number in range(20)}

            assert answered() == {"one"}
            names["triton.test"] = ["127.0.0.1", "127.0.0.2"]
            assert until(lambda: answered() == {"one", "second"})
            names["triton.test"] = ["127.0.0.2"]
            assert until(lambda: answered() == {"second"})
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.stop()


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("dns:///no-such-name.invalid:8001", ""),
        # Not the resolver's error: of the codec for names.
        ("dns:///a..b:8001", ".*label empty"),
    ],
)
def test_a_name_that_cannot_be_resolved_is_named(target: str, why: str) -> None:
    async def ask() -> bool:
        async with AsyncConnection(target, timeout_s=5) as connection:
            return await connection.ready()

    words = f"'{target}' cannot be resolved: {why}"
    with Connection(target, timeout_s=5) as connection, pytest.raises(ServerUnreachableError, match=words):
        connection.ready()
    with pytest.raises(ServerUnreachableError, match=words):
        asyncio.run(ask())


def test_a_name_that_is_lost_is_looked_up_no_more_often(
    servers: Servers, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _, port = servers[0].url.rpartition(":")
    names["triton.test"] = [address]
    lookups: list[float] = []
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "triton.test":
            lookups.append(time.monotonic())
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    options = Options(balancing=Balancing(resolve_s=0.3))
    with Recommender(f"dns:///triton.test:{port}", options=options) as recommender:
        recommender.recommend("red lamp")
        names["triton.test"] = []
        # What was found before answers meanwhile.
        assert until(lambda: recommender.recommend("red lamp") and len(lookups) >= 4)
    assert min(later - sooner for sooner, later in itertools.pairwise(lookups)) >= 0.3


def target_of(name: str, served: Served) -> str:
    """Returns a name with the server's port, at which only that server listens."""
    return f"dns:///{name}:{served.url.rpartition(':')[2]}"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_name_that_cannot_be_resolved_at_first_leaves_the_others(
    servers: Servers, names: dict[str, list[str]], caplog: pytest.LogCaptureFixture, lost: int
) -> None:
    names.update({"blue.test": ["127.0.0.1"], "green.test": ["127.0.0.1"]})
    names[("blue.test", "green.test")[lost]] = []
    targets = [target_of("blue.test", servers[0]), target_of("green.test", servers[1])]

    async def ask() -> str:
        async with AsyncRecommender(targets) as recommender:
            return (await recommender.recommend("red lamp"))[1].item_id

    with Recommender(targets) as recommender:
        answered = {recommender.recommend("red lamp")[1].item_id, asyncio.run(ask())}
    assert answered == {servers[1 - lost].name}
    assert caplog.text.count(f"dns_failed reason='{targets[lost]}' cannot be resolved") == 2


def test_a_name_that_is_lost_keeps_its_servers_and_the_others_are_looked_up(
    servers: Servers, names: dict[str, list[str]]
) -> None:
    names.update({"blue.test": ["127.0.0.1"], "green.test": []})
    targets = [target_of("blue.test", servers[0]), target_of("green.test", servers[1])]
    with Recommender(targets, options=Options(balancing=Balancing(resolve_s=0.2))) as recommender:

        def answered() -> set[str]:
            return {recommender.recommend(str(number))[1].item_id for number in range(20)}

        assert answered() == {"one"}
        names.update({"blue.test": [], "green.test": ["127.0.0.1"]})
        assert until(lambda: answered() == {"one", "two"})
        names["blue.test"] = ["127.0.0.1"]
        assert until(lambda: answered() == {"one", "two"})


def test_a_name_whose_lookup_hangs_leaves_time_for_the_others(
    servers: Servers, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["green.test"] = ["127.0.0.1"]
    hanging, resolve = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "blue.test":
            hanging.wait(60)
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    targets = [target_of("blue.test", servers[0]), target_of("green.test", servers[1])]
    try:
        for ordered in (targets, targets[::-1]):
            with Recommender(ordered, timeout_s=8) as recommender:
                assert recommender.recommend("red lamp")[1].item_id == "two"
    finally:
        hanging.set()
