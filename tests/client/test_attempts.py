"""What an attempt that fails leaves of the others: hedges, trials of servers that are left out, time, a connection."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from at_once import AT_ONCE
from proxy import Fault, Proxy
from served_models import Served, write_models
from tritonpress_client import (
    AsyncConnection,
    Balancing,
    Connection,
    DeadlineExceededError,
    InvalidInputError,
    Options,
    Retries,
    ServerUnreachableError,
    race,
)
from tritonpress_client.calls import Calls
from tritonpress_client.transport import BlockingTransport, Flight
from tritonpress_server import TritonServer
from waiting import until

MODEL = "recommendation"
SOON = Balancing(failures=1, open_s=1e-6, max_open_s=1e-6)
MORE_THAN_ALL_ADDRESSES = 2**47 - 2**12
"""Bytes of a thread's stack, with which none starts."""

Servers = tuple[Served, Served]


def query(text: str) -> dict[str, Any]:
    """Returns the inputs of a request for one text."""
    return {"QUERY": np.array([[text]])}


def no_route() -> dict[str, str]:
    """Metadata that cannot be had."""
    raise OSError("no route to the tokens")


def test_a_trial_that_raises_is_a_failed_one() -> None:
    options = Options(metadata=no_route, clear_metadata=True, balancing=SOON)
    calls = Calls(["a:1", "b:2"], BlockingTransport(), timeout_s=5, options=options)
    left_out = calls.balancer.endpoints[0]
    calls.balancer.failed(left_out, "lost", lost=True)
    for openings in (2, 3):
        assert until(lambda: left_out in calls.balancer.choose(MODEL, [])[1])
        BlockingTransport.run(calls.ready_at(left_out, MODEL))
        assert (left_out.probing, left_out.openings) == (False, openings)


def test_a_trial_for_which_there_is_no_thread_is_a_failed_one(servers: Servers, unreachable_url: str) -> None:
    with Connection([unreachable_url, servers[0].url], options=Options(balancing=SOON)) as connection:
        balancer = connection._calls.balancer
        left_out = balancer.endpoints[0]
        balancer.failed(left_out, "lost", lost=True)
        usual = threading.stack_size(MORE_THAN_ALL_ADDRESSES)
        try:
            assert connection.ready()
        finally:
            threading.stack_size(usual)
        assert (left_out.probing, left_out.openings) == (False, 2)


def test_a_trial_that_is_given_up_may_be_had_again() -> None:
    calls = Calls("a:1", BlockingTransport(), timeout_s=5, options=Options(balancing=SOON))
    endpoint = calls.balancer.endpoints[0]
    calls.balancer.failed(endpoint, "lost")
    attempts = race.Race(calls, "ModelInfer", None, MODEL, calls.deadline())
    for _ in range(2):
        assert until(lambda: calls.balancer.choose(MODEL, [])[0])
        assert endpoint.probing
        attempts._flights.append(Flight(endpoint, time.monotonic(), None))
        attempts._give_up()
        assert (endpoint.probing, endpoint.outstanding) == (False, 0)


def test_a_hedge_to_a_server_that_cannot_answer_leaves_the_first_attempt(servers: Servers, tmp_path: Path) -> None:
    repository = write_models(tmp_path / "repository", "without", instances=1)
    release = tmp_path / "release"
    options = Options(retries=Retries(hedge_after=0.1))
    with (
        TritonServer(repository, models=[], log_path=tmp_path / "log", settings=AT_ONCE) as without,
        Connection([servers[0].url, without.grpc_url], timeout_s=60, options=options) as connection,
        ThreadPoolExecutor(1) as pool,
    ):
        other = connection._calls.balancer.endpoints[1]
        other.outstanding = 9  # so that it is not the first
        job = pool.submit(connection.infer, MODEL, query(f"wait {release}"))
        try:
            assert until(lambda: other.missing or job.done())
        finally:
            release.touch()
        assert job.result()["ITEM_ID"][0, 1] == b"one"
        assert other.outstanding == 9


def test_a_hedge_that_cannot_be_sent_leaves_the_first_attempt(servers: Servers, tmp_path: Path) -> None:
    release = tmp_path / "release"
    fetched: list[int] = []

    def once() -> dict[str, str]:
        fetched.append(1)
        return {} if len(fetched) == 1 else no_route()

    options = Options(retries=Retries(hedge_after=0.1), metadata=once)
    with (
        Connection([served.url for served in servers], timeout_s=60, options=options) as connection,
        ThreadPoolExecutor(1) as pool,
    ):
        job = pool.submit(connection.infer, MODEL, query(f"wait {release}"))
        try:
            assert until(lambda: len(fetched) == 2)
        finally:
            release.touch()
        assert job.result()["ITEM_ID"][0, 0] == f"wait {release}".encode()
        assert [endpoint.outstanding for endpoint in connection._calls.balancer.endpoints] == [0, 0]


def test_the_time_that_metadata_takes_is_the_calls(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    later_s = 0.0

    def slow() -> dict[str, str]:
        nonlocal later_s
        later_s += 100
        return {}

    monkeypatch.setattr(race, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + later_s))
    with Connection(servers[0].url, timeout_s=60, options=Options(metadata=slow)) as connection:
        with pytest.raises(DeadlineExceededError, match=r"60 s has passed while `Options.metadata` was fetched; raise"):
            connection.ready()
        assert connection._calls.balancer.endpoints[0].failures == 0


@pytest.mark.parametrize("urls", [1, 2])
def test_closing_ends_what_is_on_its_way(servers: Servers, urls: int) -> None:
    text = f"sleep 30 until closed {urls}"
    connection = Connection([served.url for served in servers[:urls]], timeout_s=60)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(connection.infer, MODEL, query(text))
        try:
            assert until(lambda: any(text in served.executed() for served in servers))
        finally:
            connection.close()
        with pytest.raises(InvalidInputError, match="is closed; open another one"):
            job.result()
    assert until(lambda: any(f"cancelled {text}" in served.executed() for served in servers))
    assert [endpoint.failures for endpoint in connection._calls.balancer.endpoints] == [0] * urls


def order(urls: list[str], how: str, method: str, options: Options, timeout_s: float) -> None:
    """Orders the servers to load or unload a model that they do not have."""

    async def ask() -> None:
        async with AsyncConnection(urls, timeout_s=timeout_s, options=options) as connection:
            await getattr(connection, method)("nothing")

    if how == "async":
        asyncio.run(ask())
    else:
        with Connection(urls, timeout_s=timeout_s, options=options) as connection:
            getattr(connection, method)("nothing")


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("method", ["load_model", "unload_model"])
@pytest.mark.parametrize("fault", ["hang", "reset"])
def test_an_order_goes_to_one_server_once(proxies: tuple[Proxy, Proxy], fault: Fault, method: str, how: str) -> None:
    for proxy in proxies:
        proxy.fault = fault
    # An attempt's share of the deadline is less than gRPC gives to connecting.
    options, kind = Options(retries=Retries(hedge_after=0.05)), (DeadlineExceededError, ServerUnreachableError)
    with pytest.raises(kind) as caught:
        order([proxy.url for proxy in proxies], how, method, options, 1.5)
    assert caught.value.attempts == 1  # type: ignore[union-attr]
    assert min(proxy.connections for proxy in proxies) == 0


SLOW_TO_LOAD = """
import time
from pathlib import Path

class TritonPythonModel:
    def initialize(self, args):
        with open("{log}", "a") as log:
            log.write("loading\\n")
        while not Path("{release}").exists():
            time.sleep(0.01)
"""


@pytest.mark.parametrize("lost", [False, True])
def test_a_model_that_loads_for_long_is_loaded_by_one_server(tmp_path: Path, lost: bool) -> None:
    log, release = tmp_path / "loaded", tmp_path / "release"
    log.touch()
    with ExitStack() as stack:
        urls = []
        for name in ("one", "two"):
            repository = write_models(tmp_path / name, name, instances=1)
            (repository / MODEL / "1" / "model.py").write_text(SLOW_TO_LOAD.format(log=log, release=release))
            server = TritonServer(repository, models=[], log_path=tmp_path / f"{name}-triton.log", settings=AT_ONCE)
            urls.append(stack.enter_context(server).grpc_url)
        proxies = [stack.enter_context(Proxy(url)) for url in urls]
        options = Options(retries=Retries(hedge_after=0.05))
        connection = stack.enter_context(Connection([proxy.url for proxy in proxies], timeout_s=60, options=options))
        # The pool ends before the servers, so that none waits for the other.
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(connection.load_model, MODEL)
            try:
                assert until(log.read_text)
                if lost:
                    for proxy in proxies:
                        proxy.reset_all()
                # Twenty times as long as a hedge waits.
                until(lambda: job.done() or log.read_text().count("loading") > 1, 1)
            finally:
                release.touch()
            if lost:
                with pytest.raises(ServerUnreachableError):
                    job.result()
            else:
                job.result()
        assert log.read_text() == "loading\n"
