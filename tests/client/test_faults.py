"""Servers that hang, are slow, reset, half-open, refuse, or are something else: one server behind a proxy, or two."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest
from proxy import Fault, Proxy
from served_models import Served
from tritonpress_client import (
    AsyncRecommender,
    Balancing,
    DeadlineExceededError,
    ModelUnavailableError,
    Options,
    Recommender,
    Retries,
    ServerError,
    ServerUnreachableError,
)
from waiting import until

Proxies = tuple[Proxy, Proxy]


def server_of(recommender: Recommender, text: str = "red lamp") -> str:
    """Returns which server answered."""
    return recommender.recommend(text)[1].item_id


def answers(recommender: Recommender) -> bool:
    """Returns whether the first server answers by now."""
    try:
        return server_of(recommender) == "one"
    except (ServerUnreachableError, DeadlineExceededError):
        return False


@pytest.mark.parametrize(
    ("fault", "kind", "timeout_s", "most_s"),
    [
        ("hang", DeadlineExceededError, 3.0, 6.0),
        # Long before gRPC gives up connecting (2 s), so that the kind says that it was the deadline.
        ("half_open", DeadlineExceededError, 0.5, 20.0),
        ("reset", ServerUnreachableError, 20.0, 20.0),
        ("refuse", ServerUnreachableError, 20.0, 20.0),
        ("garbage", ServerUnreachableError, 20.0, 20.0),
    ],
)
def test_one_bad_server_is_named_within_the_deadline(
    proxies: Proxies, fault: Fault, kind: type[Exception], timeout_s: float, most_s: float
) -> None:
    with Recommender(proxies[0].url, timeout_s=timeout_s) as recommender:
        if fault == "hang":
            # On an open connection nothing but the deadline ends the call.
            assert until(lambda: answers(recommender))
        proxies[0].fault = fault
        started = time.monotonic()
        with pytest.raises(kind, match=proxies[0].url) as caught:
            recommender.recommend("red lamp")
        assert time.monotonic() - started < most_s
        assert caught.value.target == proxies[0].url  # type: ignore[union-attr]
        assert caught.value.attempts >= 1  # type: ignore[union-attr]
        proxies[0].fault = "none"
        proxies[0].reset_all()
        assert until(lambda: answers(recommender)), "it did not come back"


@pytest.mark.parametrize("fault", ["hang", "half_open", "reset", "refuse", "garbage"])
def test_beside_a_good_server_a_bad_one_loses_nothing(proxies: Proxies, fault: Fault) -> None:
    # So that few have to hang: an attempt's share of the deadline leaves time for another, and is less than gRPC gives
    # to connecting.
    options = Options(balancing=Balancing(failures=2))
    with Recommender([proxy.url for proxy in proxies], timeout_s=5.0, options=options) as recommender:
        assert {server_of(recommender) for _ in range(40)} == {"one", "two"}
        proxies[0].fault = fault
        if fault in ("half_open", "refuse", "garbage"):
            proxies[0].reset_all()
        # `hang` takes the share of the deadline of an attempt, as often as it takes to leave the server out.
        assert [server_of(recommender) for _ in range(12)] == ["two"] * 12
        assert server_of(recommender) == "two"


@pytest.mark.parametrize("fault", ["hang", "reset"])
def test_the_same_in_async(proxies: Proxies, fault: Fault) -> None:
    async def ask() -> list[str]:
        async with AsyncRecommender([proxy.url for proxy in proxies], timeout_s=6.0) as recommender:
            await asyncio.gather(*(recommender.recommend("red lamp") for _ in range(20)))
            proxies[0].fault = fault
            answers = await asyncio.gather(*(recommender.recommend("red lamp") for _ in range(40)))
            return [items[1].item_id for items in answers]

    assert asyncio.run(ask()) == ["two"] * 40


def test_a_slow_server_is_waited_for(proxies: Proxies) -> None:
    proxies[0].fault = "slow"
    with Recommender(proxies[0].url, timeout_s=5.0) as recommender:
        assert server_of(recommender) == "one"


def test_a_reset_in_the_middle_is_retried_on_a_new_connection(proxies: Proxies, servers: tuple[Served, Served]) -> None:
    with Recommender(proxies[0].url, timeout_s=5.0) as recommender:
        server_of(recommender)
        proxies[0].reset_all()
        assert [server_of(recommender) for _ in range(5)] == ["one"] * 5


def test_a_hedge_is_sent_after_the_time_that_was_set(proxies: Proxies, servers: tuple[Served, Served]) -> None:
    options = Options(retries=Retries(hedge_after=0.1))
    # Without a hedge, another server is asked after a third of the deadline.
    with Recommender([proxy.url for proxy in proxies], timeout_s=90.0, options=options) as recommender:
        assert {server_of(recommender) for _ in range(40)} == {"one", "two"}
        proxies[0].fault = "hang"
        started = time.monotonic()
        assert server_of(recommender, "hedged") == "two"
        assert time.monotonic() - started < 25


def test_a_hedge_after_the_p95(proxies: Proxies) -> None:
    options = Options(retries=Retries(hedge_after="p95"))
    with Recommender([proxy.url for proxy in proxies], timeout_s=90.0, options=options) as recommender:
        for _ in range(60):
            server_of(recommender)
        proxies[0].fault = "hang"
        started = time.monotonic()
        assert [server_of(recommender) for _ in range(5)] == ["two"] * 5
        assert time.monotonic() - started < 25


def test_what_failed_on_the_server_is_not_sent_again(servers: tuple[Served, Served]) -> None:
    # A share of the deadline that no pause of the machine uses up: what is late is sent to the other server too.
    with Recommender([served.url for served in servers], timeout_s=60) as recommender:
        recommender.recommend("red lamp")
        before = sum(served.executed().count("fail once") for served in servers)
        with pytest.raises(ServerError, match=r"failed with INTERNAL; .* the engine broke") as caught:
            recommender.recommend("fail once")
        assert caught.value.attempts == 1
        assert sum(served.executed().count("fail once") for served in servers) == before + 1


def test_the_retry_budget_bounds_what_is_sent_again(proxies: Proxies) -> None:
    retries = Retries(attempts=5, backoff_s=0.0, budget=0.0, budget_burst=2)
    with Recommender(proxies[0].url, options=Options(retries=retries)) as recommender:
        server_of(recommender)
        proxies[0].fault = "refuse"
        proxies[0].reset_all()
        attempts = []
        for _ in range(2):
            with pytest.raises(ServerUnreachableError) as caught:
                recommender.recommend("red lamp")
            attempts.append(caught.value.attempts)
        assert attempts == [3, 1]


def test_a_circuit_that_is_open_fails_at_once_and_closes_again(proxies: Proxies) -> None:
    # Left out for so long that the calls below come before the first trial.
    options = Options(balancing=Balancing(open_s=3.0))
    with Recommender(proxies[0].url, timeout_s=20, options=options) as recommender:
        server_of(recommender)
        proxies[0].fault = "refuse"
        proxies[0].reset_all()
        attempts = 1
        for _ in range(20):  # of which one that comes late is a trial
            with pytest.raises(ServerUnreachableError) as caught:
                recommender.recommend("red lamp")
            if not (attempts := caught.value.attempts):
                break
        assert attempts == 0
        assert "all have failed in a row; the next trial is in" in str(caught.value)
        proxies[0].fault = "none"
        assert until(lambda: answers(recommender))
        assert server_of(recommender) == "one"


def test_a_model_that_one_server_lacks_is_asked_of_the_other(servers: tuple[Served, Served]) -> None:
    from tritonpress_client import Connection

    with Connection([served.url for served in servers]) as connection:
        with pytest.raises(ModelUnavailableError) as caught:
            connection.model_metadata("nothing")
        assert caught.value.attempts == 2
        assert connection.ready("recommendation")


FEW_DESCRIPTORS = """
import os, resource
from tritonpress_client import Connection, ServerUnreachableError
own, most = len(os.listdir("/proc/self/fd")) - 1, resource.getrlimit(resource.RLIMIT_NOFILE)
for left in range(0, 18, 3):
    resource.setrlimit(resource.RLIMIT_NOFILE, (own + left, most[1]))
    try:
        with Connection("127.0.0.1:1", timeout_s=0.5) as connection:
            connection.ready()
    except ServerUnreachableError as exc:
        print("file descriptors" in str(exc), exc.target)
resource.setrlimit(resource.RLIMIT_NOFILE, most)
assert len(os.listdir("/proc/self/fd")) - 1 == own
"""


def test_a_process_without_file_descriptors_is_told_so_and_lives() -> None:
    """gRPC ends a process whose first channel finds none (abort)."""
    command = [sys.executable, "-c", FEW_DESCRIPTORS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["True 127.0.0.1:1"] * 6
