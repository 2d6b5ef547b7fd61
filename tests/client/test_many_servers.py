"""Several servers: who gets a request, that losing one loses nothing, how it comes back."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from served_models import Served, write_models
from tritonpress_client import (
    AsyncConnection,
    Balancing,
    Connection,
    InvalidInputError,
    Options,
    Recommender,
)
from tritonpress_client.balancer import Balancer
from tritonpress_client.endpoint import Endpoint
from tritonpress_client.transport import BlockingTransport
from tritonpress_server import TritonServer
from waiting import until

Servers = tuple[Served, Served]


class Load:
    """Threads that ask without a pause; every answer and every error is kept."""

    def __init__(self, recommender: Recommender, threads: int) -> None:
        self.answers: list[tuple[float, str, str]] = []
        self.errors: list[Exception] = []
        self.sent: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(recommender, n)) for n in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, recommender: Recommender, thread: int) -> None:
        for number in range(1_000_000):
            if self._stop.is_set():
                return
            text = f"sleep 0.002 {thread}-{number}"
            self.sent.append(text)
            asked = time.monotonic()
            try:
                items = recommender.recommend(text)
                self.answers.append((asked, items[0].item_id, items[1].item_id))
            except Exception as exc:  # noqa: BLE001 (the test says that there is none)
                self.errors.append(exc)

    def servers_since(self, when: float) -> set[str]:
        """Returns who has answered what was asked since then."""
        return {server for asked, _, server in self.answers if asked >= when}


def test_a_killed_server_loses_no_request_and_comes_back_with_another_version(servers: Servers, tmp_path: Path) -> None:
    repository = write_models(tmp_path / "three", "three", instances=2)
    first = TritonServer(repository, log_path=tmp_path / "log")
    first.start()
    url = first.grpc_url
    balancing = Balancing(return_s=0.5, max_open_s=1.0)
    with Recommender([url, servers[1].url], timeout_s=20, options=Options(balancing=balancing)) as recommender:
        with Load(recommender, 6) as load:
            assert until(lambda: load.servers_since(0) == {"three", "two"})
            os.kill(first.pid, signal.SIGKILL)
            first.stop()
            killed = time.monotonic()
            shutil.rmtree(repository)
            write_models(repository, "third", instances=2, version=2)
            again = TritonServer(repository, grpc_port=int(url.rpartition(":")[2]), log_path=tmp_path / "log2")
            assert until(lambda: load.servers_since(killed))
            assert load.servers_since(killed) == {"two"}
            again.start()
            assert until(lambda: load.servers_since(killed) == {"two", "third"})
        assert load.errors == []
        assert sorted(text for _, text, _ in load.answers) == sorted(load.sent)
        # What the client knew of the model is asked anew when a server has come back.
        assert recommender.limits().answers == 3
    os.kill(again.pid, signal.SIGKILL)
    again.stop()


def test_the_least_busy_server_is_taken(servers: Servers, tmp_path: Path) -> None:
    text = f"wait {tmp_path / 'release'}"

    def begun() -> list[int]:
        return [sum(line.startswith(text) for line in served.executed()) for served in servers]

    with (
        Recommender([served.url for served in servers], timeout_s=60) as recommender,
        ThreadPoolExecutor(4) as pool,
    ):
        recommender.limits()
        slow: list[Future[Any]] = []
        try:
            for number in range(4):
                slow.append(pool.submit(recommender.recommend, f"{text} {number}"))
                assert until(lambda: sum(begun()) == len(slow))
        finally:
            (tmp_path / "release").touch()
        assert [job.result()[0].item_id for job in slow] == [f"{text} {number}" for number in range(4)]
    assert begun() == [2, 2]


def test_a_server_without_the_model_is_passed_over(servers: Servers, tmp_path: Path) -> None:
    repository = write_models(tmp_path / "other", "other", instances=1, task="classification")
    server = TritonServer(repository, log_path=tmp_path / "log")
    server.start()
    try:
        with Recommender([server.grpc_url, servers[0].url]) as recommender:
            assert {recommender.recommend(str(number))[1].item_id for number in range(30)} == {"one"}
        with (
            Recommender(server.grpc_url, model="classification") as other,
            pytest.raises(InvalidInputError, match="is not for recommendation: it takes TEXT and gives LABEL, SCORE"),
        ):
            other.recommend("red lamp")
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.stop()


@pytest.mark.parametrize(
    "targets", [[], ["a:1", "http://b:1"], [3], "a:99999", "dns:///a", "a:1,b:2", b"a:1", {"a:1": 1}, None]
)
def test_bad_targets_are_named(targets: Any) -> None:
    for kind in (Connection, AsyncConnection):
        with pytest.raises(InvalidInputError, match="`targets` "):
            kind(targets)


def test_what_happens_to_servers_is_logged(
    servers: Servers, unreachable_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tritonpress_client")

    def left_out() -> list[Any]:
        return [record for record in caplog.records if record.tritonpress["event"] == "server_left_out"]

    with Recommender([unreachable_url, servers[0].url]) as recommender:
        # Each of the two is as likely to be asked.
        assert until(lambda: recommender.recommend("red lamp") and left_out())
    record = left_out()[0]
    assert record.tritonpress["target"] == unreachable_url
    assert "failed to connect" in record.tritonpress["reason"]


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["choose", "succeed", "fail", "lose", "break", "cancel"]), st.integers(0, 9)),
        max_size=60,
    ),
    count=st.integers(1, 4),
)
def test_the_balancer_never_loses_count(steps: list[tuple[str, int]], count: int) -> None:
    balancer = Balancer(Balancing(failures=2, open_s=1e-6, max_open_s=1e-6, return_s=0))
    transport = BlockingTransport()
    balancer.replace([f"host:{n + 1}" for n in range(count)], lambda t: Endpoint(t, "", transport, Options()))
    out: list[Endpoint] = []
    for step, which in steps:
        if step == "choose":
            endpoint, due = balancer.choose("model", out)
            for other in due:
                balancer.succeeded(other)
            # A millionth of a second later everybody may be tried again, one at a time.
            if endpoint is None:
                assert any(each.probing for each in balancer.endpoints)
                continue
            least = min((each.outstanding for each in balancer.endpoints if not each.open_until), default=0)
            assert endpoint.open_until or endpoint in out or endpoint.outstanding - 1 <= least
            out.append(endpoint)
        elif out:
            endpoint = out.pop(which % len(out))
            balancer.release(endpoint)
            if step == "succeed":
                balancer.succeeded(endpoint)
                assert not endpoint.open_until
            elif step == "cancel":
                endpoint.probing = False
            else:
                balancer.failed(endpoint, step, lost=step == "lose", last_too=step != "break")
    assert sum(endpoint.outstanding for endpoint in balancer.endpoints) == len(out)


@pytest.mark.slow
def test_the_command_that_measures_a_loss(tmp_path: Path) -> None:
    repository = write_models(tmp_path / "same", "same", instances=2)
    script = Path(__file__).parents[2] / "docs" / "client_failover.py"
    command = [sys.executable, str(script), str(repository), "--seconds", "9", "--repeats", "1", "--load", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 runs, 0 requests lost, duplicated or wrong" in done.stdout
