"""How many answers a model gives, where another build of the same version takes its place."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from at_once import AT_ONCE
from served_models import write_models
from tritonpress_client import AsyncRecommender, Connection, InvalidInputError, Options, Recommender
from tritonpress_client.observers import CallEnd
from tritonpress_server import TritonServer

MODEL = "recommendation"
Serve = Callable[[int], str]


class Counts:
    """Counts the calls by their methods."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def started(self, method: str, model: str) -> tuple[None, Mapping[str, str]]:
        """Counts one."""
        self.of[method] += 1
        return None, {}

    def ended(self, handle: Any, end: CallEnd) -> None:
        """Has nothing to do."""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serves the model with that many answers from now on, at the address that it returns; its version stays."""
    repository = write_models(tmp_path / "repository", "one", instances=1)
    with (
        TritonServer(repository, models=[], log_path=tmp_path / "log", settings=AT_ONCE) as server,
        Connection(server.grpc_url, timeout_s=60) as connection,
    ):

        def served(width: int) -> str:
            write_models(repository, "one", instances=1, width=width)
            connection.load_model(MODEL)
            assert connection.model_metadata(MODEL).outputs["ITEM_ID"].shape == (-1, width)
            return server.grpc_url

        yield served


def test_more_answers_are_given_as_soon_as_they_are_served(serve: Serve) -> None:
    with Recommender(serve(2)) as recommender:
        with pytest.raises(InvalidInputError, match=r"`k` must be an integer in 1\.\.2 \("):
            recommender.recommend("a", 4)
        assert len(recommender.recommend("a")) == 2
        serve(4)
        assert len(recommender.recommend("a", 4)) == 4
        serve(3)
        assert len(recommender.recommend("a")) == 3
        assert recommender.limits().answers == 3


def test_fewer_answers_than_are_asked_for_are_not_given_on_and_on(serve: Serve) -> None:
    with Recommender(serve(4)) as recommender:
        assert len(recommender.recommend("a", 2)) == 2
        serve(1)
        # Which shows that it is another build.
        assert len(recommender.recommend("a", 2)) == 1
        for ask in (recommender.recommend, lambda text, k: recommender.recommend_many([text], k)):
            with pytest.raises(InvalidInputError, match=r"`k` must be an integer in 1\.\.1 \("):
                ask("a", 2)
        assert recommender.limits().answers == 1


def test_the_same_in_async(serve: Serve) -> None:
    async def ask(url: str) -> None:
        async with AsyncRecommender(url) as recommender:
            assert len(await recommender.recommend("a", 2)) == 2
            await asyncio.to_thread(serve, 4)
            assert [len(items) for items in await recommender.recommend_many(["a", "b"], 4)] == [4, 4]
            await asyncio.to_thread(serve, 1)
            assert len(await recommender.recommend("a", 2)) == 1
            with pytest.raises(InvalidInputError, match=r"`k` must be an integer in 1\.\.1 \("):
                await recommender.recommend("a", 2)

    asyncio.run(ask(serve(2)))


def test_the_metadata_is_asked_for_no_more_often_than_it_may_have_changed(serve: Serve) -> None:
    counts = Counts()
    with Recommender(serve(2), options=Options(observers=(counts,))) as recommender:
        for _ in range(3):
            recommender.recommend("a", 2)
        assert counts.of["ModelMetadata"] == 1
        for asked, wrong in enumerate([0, True, "2"]):
            with pytest.raises(InvalidInputError, match="`k` must be an integer"):
                recommender.recommend("a", wrong)  # type: ignore[arg-type]
            assert (asked, counts.of["ModelMetadata"]) == (asked, 1)
        with pytest.raises(InvalidInputError, match="`k` must be an integer"):
            recommender.recommend("a", 3)
        assert counts.of["ModelMetadata"] == 2
        assert recommender.limits().answers == 2
        assert counts.of == {"ModelMetadata": 2, "ModelConfig": 2, "ModelInfer": 3}
    with Recommender(serve(2), options=Options(observers=(counts,))) as recommender:
        with pytest.raises(InvalidInputError, match="`k` must be an integer"):
            recommender.recommend("a", 3)
        # What was read this moment is not read again.
        assert counts.of["ModelMetadata"] == 3
