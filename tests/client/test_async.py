"""The same logic in async: answers, errors, cancellation that reaches the server; and in a blocking client too."""

from __future__ import annotations

import asyncio
import inspect
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from served_models import Served
from tiny_sources import contexts
from tritonpress_client import (
    AsyncClassifier,
    AsyncConnection,
    AsyncQuestionAnswering,
    AsyncRecommender,
    Classifier,
    Connection,
    DeadlineExceededError,
    InvalidInputError,
    ModelUnavailableError,
    QuestionAnswering,
    Recommender,
    ServerUnreachableError,
)
from tritonpress_server import TritonServer
from waiting import until

Servers = tuple[Served, Served]


def count(servers: Servers, line: str) -> int:
    """Returns how often the servers' models have noted that."""
    return sum(served.executed().count(line) for served in servers)


def test_answers_are_those_of_the_blocking_clients(task_server: TritonServer) -> None:
    url = task_server.grpc_url
    pairs = [("the kitchen", context) for context in contexts()[:10]]

    async def ask() -> list[Any]:
        async with (
            AsyncQuestionAnswering(url) as answering,
            AsyncClassifier(url) as classifier,
            AsyncRecommender(url) as recommender,
        ):
            return [
                await answering.ask(*pairs[0]),
                await answering.answers(*pairs[0], 2),
                await answering.ask_many(pairs),
                await classifier.classify("red lamp"),
                await recommender.recommend("red lamp", 3),
                await recommender.limits(),
            ]

    with QuestionAnswering(url) as answering, Classifier(url) as classifier, Recommender(url) as recommender:
        expected = [
            answering.ask(*pairs[0]),
            answering.answers(*pairs[0], 2),
            answering.ask_many(pairs),
            classifier.classify("red lamp"),
            recommender.recommend("red lamp", 3),
            recommender.limits(),
        ]
    assert asyncio.run(ask()) == expected


def test_a_connection_in_async(servers: Servers) -> None:
    async def ask() -> None:
        async with AsyncConnection(servers[0].url) as connection:
            answer = await connection.infer("recommendation", {"QUERY": np.array([["red"]])}, ["SCORE"])
            assert answer["SCORE"].tolist() == [[3, 2, 1]]
            assert await connection.ready("recommendation")
            assert [model.name for model in await connection.models()] == ["recommendation"]
            with pytest.raises(ModelUnavailableError):
                await connection.statistics("nothing")
        with pytest.raises(InvalidInputError, match="is closed"):
            await connection.ready()

    asyncio.run(ask())


def test_a_client_serves_one_event_loop_after_another(servers: Servers) -> None:
    recommender = AsyncRecommender(servers[0].url)
    for _ in range(3):
        assert asyncio.run(recommender.recommend("red lamp"))[1].item_id == "one"
    asyncio.run(recommender.close())


def test_errors_are_the_same(unreachable_url: str, servers: Servers) -> None:
    async def ask(url: str, timeout_s: float, query: str) -> None:
        async with AsyncRecommender(url, timeout_s=timeout_s) as recommender:
            await recommender.recommend(query)

    with pytest.raises(ServerUnreachableError, match=unreachable_url):
        asyncio.run(ask(unreachable_url, 20, "a"))
    with pytest.raises(InvalidInputError, match="`query` is empty"):
        asyncio.run(ask(unreachable_url, 20, " "))
    with pytest.raises(InvalidInputError, match=r"QUERY\[0\] must have text"):
        asyncio.run(ask(servers[0].url, 20, "bad"))
    with pytest.raises(DeadlineExceededError, match=r"did not answer within 0\.3 s"):
        asyncio.run(ask(servers[0].url, 0.3, "sleep 2"))


def test_a_cancelled_task_stops_costing_the_server(servers: Servers) -> None:
    async def cancel() -> None:
        async with AsyncRecommender([served.url for served in servers], timeout_s=60) as recommender:
            task = asyncio.create_task(recommender.recommend("sleep 30 task"))
            assert await asyncio.to_thread(until, lambda: count(servers, "sleep 30 task"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel())
    assert until(lambda: count(servers, "cancelled sleep 30 task"))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python does not say whether a task or its call was cancelled")
@pytest.mark.parametrize("urls", [1, 2])
def test_closing_cancels_no_task(servers: Servers, urls: int) -> None:
    texts = [f"sleep 30 closed {urls}", f"sleep 30 cancelled and closed {urls}"]

    async def close() -> None:
        async with AsyncRecommender([served.url for served in servers[:urls]], timeout_s=60) as recommender:
            tasks = [asyncio.create_task(recommender.recommend(text)) for text in texts]
            for text in texts:
                assert await asyncio.to_thread(until, lambda text=text: count(servers, text))
            tasks[1].cancel()
        with pytest.raises(InvalidInputError, match="is closed; open another one"):
            await tasks[0]
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]

    asyncio.run(close())
    assert until(lambda: all(count(servers, f"cancelled {text}") for text in texts))


@pytest.mark.parametrize("urls", [1, 2])
def test_a_deadline_stops_costing_the_server(servers: Servers, urls: int) -> None:
    text = f"sleep 30 deadline {urls}"
    with Recommender([served.url for served in servers[:urls]], timeout_s=3) as recommender:
        recommender.limits()  # so that the deadline is the request's alone
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            recommender.recommend(text)
        assert time.monotonic() - started < 20
    assert until(lambda: count(servers, f"cancelled {text}"))


def test_ctrl_c_reaches_the_server(servers: Servers) -> None:
    program = (
        "import signal, sys\n"
        "from tritonpress_client import Recommender\n"
        # A process that was started in the background ignores it otherwise.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with Recommender(sys.argv[1:], timeout_s=60) as recommender:\n"
        "    recommender.recommend('red')\n"
        "    recommender.recommend(f'sleep 30 interrupted {len(sys.argv)}')\n"
    )
    for urls in ([servers[0].url], [served.url for served in servers]):
        text = f"sleep 30 interrupted {len(urls) + 1}"
        with subprocess.Popen([sys.executable, "-c", program, *urls], stderr=subprocess.PIPE) as process:
            assert until(lambda text=text: count(servers, text))
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        assert b"KeyboardInterrupt" in said
        assert until(lambda text=text: count(servers, f"cancelled {text}"))


def test_both_kinds_have_the_same_methods_from_one_definition() -> None:
    for blocking, asynchronous in (
        (Connection, AsyncConnection),
        (QuestionAnswering, AsyncQuestionAnswering),
        (Classifier, AsyncClassifier),
        (Recommender, AsyncRecommender),
    ):
        names = [name for name, _ in inspect.getmembers(blocking) if not name.startswith("_")]
        assert names == [name for name, _ in inspect.getmembers(asynchronous) if not name.startswith("_")]
        defined = [name for name in names if name not in ("close", "transport_class")]
        assert all(name not in vars(blocking) and name not in vars(asynchronous) for name in defined)
