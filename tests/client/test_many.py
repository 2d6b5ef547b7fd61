"""Many elements: batches, order, a bounded flight, bad elements found, partial results, progress; sync and async."""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from at_once import AT_ONCE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served_models import Served, write_models
from tritonpress_client import (
    AsyncRecommender,
    InvalidInputError,
    ModelUnavailableError,
    Options,
    PartialFailureError,
    Recommender,
    Retries,
    ServerError,
    ServerUnreachableError,
)
from tritonpress_client.cli import main
from tritonpress_server import TritonServer
from waiting import until

Servers = tuple[Served, Served]


def ask_in_async(url: str, queries: list[str], **arguments: Any) -> Any:
    """Returns what the async client answers to many."""

    async def ask() -> Any:
        async with AsyncRecommender(url, in_flight=3) as recommender:
            return await recommender.recommend_many(queries, 1, **arguments)

    return asyncio.run(ask())


def ask_in_sync(url: str, queries: list[str], **arguments: Any) -> Any:
    """Returns what the blocking client answers to many."""
    with Recommender(url, in_flight=3) as recommender:
        return recommender.recommend_many(queries, 1, **arguments)


@pytest.mark.parametrize("ask", [ask_in_sync, ask_in_async])
def test_order_is_kept_and_progress_is_told(ask: Any, servers: Servers) -> None:
    # The first batches take longest, so that they are answered last.
    queries = [f"sleep {0.1 if number < 4 else 0} {number}" for number in range(22)]
    told: list[tuple[int, int]] = []
    items = ask(servers[0].url, queries, progress=lambda done, total: told.append((done, total)))
    assert [found[0].item_id for found in items] == queries
    assert told[-1] == (22, 22)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) == 6


@pytest.mark.parametrize("ask", [ask_in_sync, ask_in_async])
def test_bad_elements_are_found_and_the_others_answered(ask: Any, servers: Servers) -> None:
    queries = ["a", "bad 1", "b", "bad 2", "c", "d", "e", "f", "bad 8", "fail", "g"]
    with pytest.raises(
        PartialFailureError, match=r"5 of 11 queries failed \(1, 3, 8, 9, 10\); .*`queries\[1\]`: "
    ) as caught:
        ask(servers[0].url, queries)
    failures = caught.value.failures
    assert {index: type(error) for index, error in failures.items()} == {
        1: InvalidInputError,
        3: InvalidInputError,
        8: InvalidInputError,
        # The server fails a request as a whole, and does not say at which element.
        9: ServerError,
        10: ServerError,
    }
    answered = [None if items is None else items[0].item_id for items in caught.value.results]
    assert answered == [None if index in failures else query for index, query in enumerate(queries)]


@pytest.mark.parametrize("ask", [ask_in_sync, ask_in_async])
def test_a_batch_may_hold_more_bad_elements_than_calls_may_be_nested(ask: Any, tmp_path: Path) -> None:
    repository = write_models(tmp_path / "repository", "wide", max_batch_size=1024)
    queries = ["a", *["bad"] * (sys.getrecursionlimit() + 10), "b"]
    with (
        TritonServer(repository, log_path=tmp_path / "log", settings=AT_ONCE) as server,
        pytest.raises(PartialFailureError, match=f"{len(queries) - 2} of {len(queries)} queries failed") as caught,
    ):
        ask(server.grpc_url, queries)
    assert [items[0].item_id for items in caught.value.results if items] == ["a", "b"]
    assert str(caught.value.failures[7]).startswith("`queries[7]`: ")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=st.lists(st.booleans(), min_size=1, max_size=13), in_flight=st.integers(1, 4))
def test_whatever_is_bad_the_others_are_answered(servers: Servers, bad: list[bool], in_flight: int) -> None:
    queries = [f"bad {number}" if is_bad else str(number) for number, is_bad in enumerate(bad)]
    with Recommender(servers[0].url, in_flight=in_flight) as recommender:
        try:
            results: Any = recommender.recommend_many(queries, 1)
            failures: dict[int, Any] = {}
        except PartialFailureError as exc:
            results, failures = exc.results, exc.failures
        except InvalidInputError:
            results, failures = [None] * len(bad), dict.fromkeys(range(len(bad)))
    assert sorted(failures) == [index for index, is_bad in enumerate(bad) if is_bad]
    assert [items and items[0].item_id for items in results] == [
        None if is_bad else query for query, is_bad in zip(queries, bad, strict=True)
    ]


@pytest.mark.parametrize("ask", [ask_in_sync, ask_in_async])
def test_no_more_are_in_flight_than_was_said(ask: Any, servers: Servers) -> None:
    started = time.monotonic()
    ask(servers[1].url, [f"sleep 0.05 {number}" for number in range(24)])
    # 6 batches of 4 · 0.05 s, at most 3 at a time: two rounds at least.
    assert time.monotonic() - started >= 0.4


def test_what_fails_for_all_is_raised_itself(servers: Servers, unreachable_url: str) -> None:
    queries = [str(number) for number in range(40)]
    with Recommender(unreachable_url) as recommender, pytest.raises(ServerUnreachableError):
        recommender.recommend_many(queries)
    with Recommender(servers[0].url, model="nothing") as recommender, pytest.raises(ModelUnavailableError):
        recommender.recommend_many(queries)


@pytest.mark.parametrize("ask", [ask_in_sync, ask_in_async])
def test_a_progress_hook_that_raises_ends_the_call(ask: Any, servers: Servers, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise RuntimeError("enough")

    # All but the first batch are answered when they may be, and the call ends before.
    text = f"wait {tmp_path / 'release'}"
    queries = [*(str(number) for number in range(4)), *(f"{text} {number}" for number in range(76))]
    try:
        with pytest.raises(RuntimeError, match="enough"):
            ask(servers[0].url, queries, progress=stop)
        # Two beside the first one, and the one that a thread may have taken before the hook was called.
        assert len({line for line in servers[0].executed() if line.startswith(text)}) <= 3
    finally:
        (tmp_path / "release").touch()


def test_a_queue_that_is_full_fails_what_it_refuses_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = write_models(tmp_path / "repository", "narrow", instances=1)
    config = repository / "recommendation" / "config.pbtxt"
    config.write_text(config.read_text() + "dynamic_batching { default_queue_policy { max_queue_size: 1 } }\n")
    release = tmp_path / "release"
    refused: list[Exception] = []

    def fill(recommender: Recommender) -> None:
        while not release.exists():
            try:
                recommender.recommend(f"wait {release}")
            except ModelUnavailableError as exc:
                refused.append(exc)

    with (
        TritonServer(repository, log_path=tmp_path / "log", settings=AT_ONCE) as server,
        Recommender(server.grpc_url, timeout_s=60, options=Options(retries=Retries(attempts=1))) as others,
        ThreadPoolExecutor(16) as pool,
    ):
        try:
            others.limits()
            asked = [pool.submit(fill, others) for _ in range(16)]
            # By then all has been taken that there is room for, executing too.
            assert until(lambda: len(refused) > 200)
            assert main(["recommend", "a", "--url", server.grpc_url]) == 1
            assert "Exceeds maximum queue size" in capsys.readouterr().err

            def make_room(done: int, total: int) -> None:
                release.touch()
                assert until(lambda: all(each.done() for each in asked))

            async def ask() -> Any:
                async with AsyncRecommender(server.grpc_url, timeout_s=60, in_flight=1) as recommender:
                    return await recommender.recommend_many([str(n) for n in range(12)], 1, progress=make_room)

            with pytest.raises(PartialFailureError) as caught:
                asyncio.run(ask())
        finally:
            release.touch()
    assert {index: type(error) for index, error in caught.value.failures.items()} == dict.fromkeys(
        range(4), ModelUnavailableError
    )
    assert [items[0].item_id for items in caught.value.results[4:]] == [str(number) for number in range(4, 12)]


def test_threads_share_a_client(servers: Servers) -> None:
    with Recommender([served.url for served in servers]) as recommender, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: recommender.recommend(str(number)), range(200)))
    assert [items[0].item_id for items in answers] == [str(number) for number in range(200)]
    assert {items[1].item_id for items in answers} == {"one", "two"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"in_flight": 0}, "`in_flight` must be an integer above 0, got 0"),
        ({"in_flight": True}, "`in_flight` must be"),
        ({"model": ""}, "`model` must be a model's name, got ''"),
        ({"model": 3}, "`model` must be a model's name, got 3"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        Recommender("127.0.0.1:8001", **arguments)
