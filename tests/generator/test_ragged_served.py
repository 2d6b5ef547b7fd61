"""Ragged in the real Triton: the answers of the padded form, alone, mixed and in clients' batches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_sources import write_recipe
from tritonpress_client import Connection, InvalidInputError, Recommendation, Recommender
from tritonpress_generator.build import build
from tritonpress_server import TritonServer

MAX_LENGTH = 48
MAX_TOKENS = 800
"""Of an execution of 8 requests: 100 a request."""
TEXTS = ["lamp " * n for n in range(1, MAX_LENGTH + 3)]
"""Of every length that the model takes, special tokens included, and of two that are cut off."""


@pytest.fixture(scope="module")
def ragged_url(tiny_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    sources = shutil.copytree(tiny_sources, tmp_path_factory.mktemp("ragged") / "sources")
    serve = {"max_batch_size": 8, "max_length": MAX_LENGTH, "lengths": {"ragged": {"max_tokens": MAX_TOKENS}}}
    built = build(write_recipe(sources, serve=serve), sources.parent / "repository")
    with TritonServer(built.folder.parent) as server:
        yield server.grpc_url


@pytest.fixture(scope="module")
def expected(tiny_server: TritonServer) -> list[list[Recommendation]]:
    with Recommender(tiny_server.grpc_url) as padded:
        return [padded.recommend(text) for text in TEXTS]


def assert_same(got: Sequence[Recommendation], expected: Sequence[Recommendation]) -> None:
    assert [item.item_id for item in got] == [item.item_id for item in expected]
    assert [item.score for item in got] == pytest.approx([item.score for item in expected], abs=1e-5)


def test_every_length_alone_and_in_a_batch(ragged_url: str, expected: list[list[Recommendation]]) -> None:
    with Recommender(ragged_url) as recommender:
        for text, answer in zip(TEXTS, expected, strict=True):
            assert_same(recommender.recommend(text), answer)
        mixed = [TEXTS[0], TEXTS[-1], TEXTS[20], TEXTS[0]]
        for got, i in zip(recommender.recommend_many(mixed), (0, len(TEXTS) - 1, 20, 0), strict=True):
            assert_same(got, expected[i])


def test_requests_of_different_lengths_share_executions(ragged_url: str, expected: list[list[Recommendation]]) -> None:
    with Recommender(ragged_url) as recommender, Connection(ragged_url) as connection:
        engine = next(name for name in (status.name for status in connection.models()) if "_engine_" in name)
        (before,) = connection.statistics(engine)

        def ask(i: int) -> None:
            # Every third request is a client's batch.
            chosen = [i, len(TEXTS) - 1 - i] if i % 3 == 0 else [i]
            for got, j in zip(recommender.recommend_many([TEXTS[j] for j in chosen]), chosen, strict=True):
                assert_same(got, expected[j])

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(ask, list(range(len(TEXTS))) * 4))
        (after,) = connection.statistics(engine)
    assert (after - before).success.count == len(TEXTS) * 4
    assert (after - before).execution_count < len(TEXTS) * 4


def test_too_many_tokens_refuse_their_request_and_no_other(
    ragged_url: str, expected: list[list[Recommendation]]
) -> None:
    with Recommender(ragged_url) as recommender, ThreadPoolExecutor(8) as pool:
        good = [pool.submit(recommender.recommend, TEXTS[i]) for i in range(20)]
        bad = [pool.submit(recommender.recommend_many, [TEXTS[-1]] * 3) for _ in range(5)]
        for i, future in enumerate(good):
            assert_same(future.result(), expected[i])
        for refused in bad:
            with pytest.raises(InvalidInputError, match=r"QUERY\[2\] must keep the request within 100 tokens, "):
                refused.result()


def test_control_characters_are_refused_with_their_index(ragged_url: str) -> None:
    with (
        Recommender(ragged_url) as recommender,
        pytest.raises(InvalidInputError, match=r"QUERY\[1\] must have text"),
    ):
        recommender.recommend_many(["lamp", "\x00\x07"])
