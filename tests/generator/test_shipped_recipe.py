"""The shipped recipe on its real weights: size, accuracy, and answers that do not depend on their neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from at_once import AT_ONCE
from tritonpress_client import Recommender
from tritonpress_client.connection import Connection
from tritonpress_client.errors import InvalidInputError
from tritonpress_generator import recipe as recipes
from tritonpress_generator import repository
from tritonpress_generator.build import build_recipe
from tritonpress_server import TritonServer

RECIPE = Path(__file__).parents[2] / "generator" / "recipes" / "recommendation.yaml"


@pytest.fixture(scope="module")
def manifest_and_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], str]]:
    out = tmp_path_factory.mktemp("shipped")
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    # The recipe leaves the form to a measurement, and each run of these tests is of one: here the texts have the most
    # to do with each other.
    recipe["serve"]["lengths"] = "ragged"
    manifest = build_recipe(recipes.of(recipe, path=RECIPE), out).manifest
    with TritonServer(out, settings=AT_ONCE) as server:
        yield manifest, server.grpc_url


@pytest.fixture(scope="module")
def queries() -> list[str]:
    recipe = recipes.load(RECIPE)
    return [query.query for query in recipe.task.module.load_data(recipe).queries]


def test_repository_is_at_most_30_percent_of_the_checkpoint(manifest_and_url: tuple[dict[str, Any], str]) -> None:
    manifest, _ = manifest_and_url
    assert repository.size_bytes(manifest) <= 0.30 * manifest["checkpoint"]["bytes"]


def test_int8_keeps_99_percent_of_ndcg(manifest_and_url: tuple[dict[str, Any], str]) -> None:
    gate = manifest_and_url[0]["gate"]
    assert gate["metric"] == "ndcg@10"
    assert gate["served"] >= 0.99 * gate["baseline"] > 0.3


def test_alone_in_a_batch_and_under_load_the_same_items_in_the_same_order(
    manifest_and_url: tuple[dict[str, Any], str], queries: list[str]
) -> None:
    _, url = manifest_and_url
    with Recommender(url, timeout_s=60) as recommender:
        alone = [recommender.recommend(query) for query in queries]
        # Neighbours of other lengths in every batch: the shortest beside the longest.
        order = sorted(range(len(queries)), key=lambda i: len(queries[i]))
        mixed = [i for pair in zip(order, reversed(order), strict=True) for i in pair][: len(queries)]
        for start in range(0, len(mixed), 8):
            chunk = mixed[start : start + 8]
            answers = recommender.recommend_many([queries[i] for i in chunk])
            for i, answer in zip(chunk, answers, strict=True):
                assert [item.item_id for item in answer] == [item.item_id for item in alone[i]]
                assert np.allclose([item.score for item in answer], [item.score for item in alone[i]], atol=1e-6)
        with ThreadPoolExecutor(16) as pool:
            crowded = list(pool.map(recommender.recommend, queries * 3))
    for i, answer in enumerate(crowded):
        assert [item.item_id for item in answer] == [item.item_id for item in alone[i % len(queries)]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"QUERY\[1\] must have text"),
        (b"\x00\x07", r"QUERY\[1\] must have text"),
        (b"a" * 1_000_000, r"QUERY\[1\] must be at most 8192 bytes, got 1000000"),
        (b"\xff\xfe", r"QUERY\[1\] must be UTF-8"),
    ],
)
def test_bad_text_refuses_its_own_request_and_no_other(
    manifest_and_url: tuple[dict[str, Any], str], text: bytes, message: str
) -> None:
    _, url = manifest_and_url
    good = np.array([[b"claw hammer"]], np.object_)
    bad = np.array([[b"claw hammer"], [text]], np.object_)
    with Connection(url, timeout_s=60) as connection:
        expected = connection.infer("recommendation", {"QUERY": good})["ITEM_ID"]

        def ask(turn: int) -> None:
            if turn % 4 == 0:
                with pytest.raises(InvalidInputError, match=message):
                    connection.infer("recommendation", {"QUERY": bad})
            else:
                assert np.array_equal(connection.infer("recommendation", {"QUERY": good})["ITEM_ID"], expected)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(32)))
