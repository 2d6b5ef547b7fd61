"""Every form of the lengths in every layout, in the real Triton: a text has one answer, whatever is served with it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from at_once import AT_ONCE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_sources import write_recipe
from tritonpress_client import Connection, InvalidInputError, Recommendation, Recommender
from tritonpress_generator.build import build
from tritonpress_server import TritonServer

MAX_LENGTH = 64
"""The model's positions."""
MAX_BATCH = 8
MAX_TOKENS = 800
"""Of a ragged execution: 100 a request of the ensemble."""
TEXTS = ["lamp " * n for n in range(1, MAX_LENGTH + 3)]
"""Of every length that the model takes, special tokens included, and of some that are cut off."""
FORMS: dict[str, object] = {
    "exact": "exact",
    "ragged": {"ragged": {"max_tokens": MAX_TOKENS}},
    "buckets": [8, 16, 40, MAX_LENGTH],
}
WORKLOADS = [f"{layout}_{form}" for layout in ("ensemble", "single") for form in FORMS]
REFERENCE = WORKLOADS[0]


@pytest.fixture(scope="module")
def url(tiny_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a workload for each form in each layout."""
    sources = shutil.copytree(tiny_sources, tmp_path_factory.mktemp("forms") / "sources")
    out = sources.parent / "repository"
    for workload in WORKLOADS:
        layout, form = workload.split("_")
        serve = {"max_batch_size": MAX_BATCH, "max_length": MAX_LENGTH, "lengths": FORMS[form], "steps": layout}
        build(write_recipe(sources, name=workload, serve=serve), out)
    with TritonServer(out, settings=AT_ONCE) as server:
        yield server.grpc_url


@pytest.fixture(scope="module")
def expected(url: str) -> list[list[Recommendation]]:
    """The answers of the padded form, each text alone."""
    with Recommender(url, model=REFERENCE) as padded:
        return [padded.recommend(text) for text in TEXTS]


def assert_same(got: Sequence[Recommendation], expected: Sequence[Recommendation]) -> None:
    assert [item.item_id for item in got] == [item.item_id for item in expected]
    assert [item.score for item in got] == pytest.approx([item.score for item in expected], abs=1e-5)


@pytest.mark.parametrize("workload", WORKLOADS[1:])
def test_every_length_alone(url: str, expected: list[list[Recommendation]], workload: str) -> None:
    with Recommender(url, model=workload) as recommender:
        for text, answer in zip(TEXTS, expected, strict=True):
            assert_same(recommender.recommend(text), answer)


@pytest.mark.parametrize("workload", WORKLOADS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(
        st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=MAX_BATCH).filter(
            lambda chosen: sum(min(i + 3, MAX_LENGTH) for i in chosen) <= MAX_TOKENS // MAX_BATCH
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_mix_of_lengths(
    url: str, expected: list[list[Recommendation]], workload: str, requests: list[list[int]]
) -> None:
    """Clients' batches of any lengths, at the same time."""
    with Recommender(url, model=workload) as recommender, ThreadPoolExecutor(len(requests)) as pool:
        answers = pool.map(lambda chosen: recommender.recommend_many([TEXTS[i] for i in chosen]), requests)
        for chosen, answer in zip(requests, answers, strict=True):
            for i, got in zip(chosen, answer, strict=True):
                assert_same(got, expected[i])


@pytest.mark.parametrize("workload", ["ensemble_ragged", "single_ragged", "single_exact"])
def test_requests_of_different_lengths_share_executions(url: str, workload: str) -> None:
    """Of requests that all differ in length, two that wait at the same time: nothing but the form lets them share."""
    role = "engine" if workload.startswith("ensemble") else "model"
    uncut = TEXTS[: MAX_LENGTH - 2]
    with Recommender(url, model=workload) as recommender, Connection(url) as connection:
        step = next(status.name for status in connection.models() if status.name.startswith(f"{workload}_{role}_"))
        (before,) = connection.statistics(step)
        end = time.monotonic() + 30
        with ThreadPoolExecutor(16) as pool:
            # How many wait at the same time is the machine's affair; that some do, and share, is the form's.
            while not any(size > 1 for size in (connection.statistics(step)[0] - before).batch_sizes):
                assert time.monotonic() < end, "every request was executed alone"
                list(pool.map(recommender.recommend, uncut))


def test_too_many_tokens_refuse_their_request_and_no_other(url: str, expected: list[list[Recommendation]]) -> None:
    request = {"QUERY": np.array([[TEXTS[-1].encode()]] * 3, np.object_)}
    with (
        Recommender(url, model="ensemble_ragged") as recommender,
        Connection(url) as connection,
        ThreadPoolExecutor(8) as pool,
    ):
        good = [pool.submit(recommender.recommend, TEXTS[i]) for i in range(20)]
        bad = [pool.submit(connection.infer, "ensemble_ragged", request) for _ in range(5)]
        for i, future in enumerate(good):
            assert_same(future.result(), expected[i])
        for refused in bad:
            with pytest.raises(InvalidInputError, match=r"QUERY\[1\] must keep the request within 100 tokens, "):
                refused.result()


def test_what_is_too_much_together_is_asked_apart(url: str, expected: list[list[Recommendation]]) -> None:
    with Recommender(url, model="ensemble_ragged") as recommender:
        for got in recommender.recommend_many([TEXTS[-1]] * 3):
            assert_same(got, expected[-1])


def test_single_step_divides_what_exceeds_an_execution(url: str, expected: list[list[Recommendation]]) -> None:
    with Recommender(url, model="single_ragged") as recommender, ThreadPoolExecutor(8) as pool:
        # Eight requests of eight of the longest texts: 4,096 tokens where an execution has 800.
        for answers in pool.map(recommender.recommend_many, [[TEXTS[-1]] * MAX_BATCH] * 8):
            for got in answers:
                assert_same(got, expected[-1])


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("bad", ["\x00\x07", " ", "lamp" * 3000])
def test_bad_text_refuses_its_request_with_its_index_and_no_other(
    url: str, expected: list[list[Recommendation]], workload: str, bad: str
) -> None:
    request = {"QUERY": np.array([[b"lamp"], [bad.encode()]], np.object_)}
    with (
        Recommender(url, model=workload) as recommender,
        Connection(url) as connection,
        ThreadPoolExecutor(12) as pool,
    ):
        good = [pool.submit(recommender.recommend, TEXTS[i]) for i in range(10)]
        refused = pool.submit(connection.infer, workload, request)
        with pytest.raises(InvalidInputError, match=r"QUERY\[1\] must "):
            refused.result()
        for i, future in enumerate(good):
            assert_same(future.result(), expected[i])
