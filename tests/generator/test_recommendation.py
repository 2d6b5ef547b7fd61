"""Catalogue, ranking and metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_sources import items, queries, write_jsonl
from tritonpress_generator.catalogue import load_items, load_queries
from tritonpress_generator.errors import InputError
from tritonpress_generator.metrics import ndcg_at_k, recall_at_k
from tritonpress_generator.steps.recommendation.postprocessor import Catalogue

SHIPPED = Path(__file__).parents[2] / "generator" / "recipes" / "recommendation"


def test_shipped_catalogue_is_well_formed_and_large_enough() -> None:
    catalogue = load_items(SHIPPED / "catalogue.jsonl")
    records = [json.loads(line) for line in (SHIPPED / "catalogue.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(catalogue) >= 600
    assert len({record["department"] for record in records}) >= 8
    assert len({item.title for item in catalogue}) == len(catalogue)
    assert len({item.text for item in catalogue}) == len(catalogue)
    assert all(3 <= len(item.text.split()) <= 60 for item in catalogue)


def test_shipped_queries_are_well_formed_and_enough() -> None:
    catalogue = load_items(SHIPPED / "catalogue.jsonl")
    titles = {item.title: item.item_id for item in catalogue}
    labelled = load_queries(SHIPPED / "queries.jsonl", set(titles.values()))
    assert len(labelled) >= 150
    assert len({query.query for query in labelled}) == len(labelled)
    assert all(set(query.relevant.values()) <= {1.0, 2.0} for query in labelled)
    for query in labelled:
        lines = query.query.splitlines()
        if len(lines) > 1:
            seen = {titles[line] for line in lines}
            assert not seen & set(query.relevant)


def test_csv_and_jsonl_give_the_same_items(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,title,text\n1,Lamp,"A lamp, red"\n2,Bowl,A bowl\n', encoding="utf-8")
    write_jsonl(
        tmp_path / "a.jsonl",
        [{"id": "1", "title": "Lamp", "text": "A lamp, red"}, {"id": "2", "title": "Bowl", "text": "A bowl"}],
    )
    assert load_items(tmp_path / "a.csv") == load_items(tmp_path / "a.jsonl")


@pytest.mark.parametrize(("name", "between"), [("a.csv", ","), ("a.tsv", "\t")])
def test_an_item_may_be_as_long_in_csv_as_in_jsonl(tmp_path: Path, name: str, between: str) -> None:
    long = "lamp " * 30_000
    (tmp_path / name).write_text(f"{between.join(('id', 'title', 'text'))}\n{between.join(('1', 'Lamp', long))}\n")
    write_jsonl(tmp_path / "a.jsonl", [{"id": "1", "title": "Lamp", "text": long}])
    assert load_items(tmp_path / name) == load_items(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"id": "a", "title": "t", "text": ""}\n{"id": "a", "title": "u", "text": ""}\n',
            r":2: id 'a' must be unique, is also in line 1",
        ),
        (b'{"id": "a", "title": " ", "text": ""}\n', r":1: item 'a' must have a title or a text"),
        (b'{"id": "", "title": "t", "text": ""}\n', r":1: 'id' must not be empty"),
        (b'{"id": 3, "title": "t", "text": ""}\n', r":1: 'id' must be a string, got 3"),
        (b'{"id": "a", "title": "t"}\n', r":1: 'text' must be a string, got None"),
        (
            b'{"id": "a", "title": "t", "text": "x"}\n{"id": "b", "title": "\xe9"}\n',
            r":2: must be UTF-8, got byte 0xe9",
        ),
        (b"[1]\n", r":1: must be a JSON object, got list"),
        (b"{\n", r":1: is not JSON"),
        (b"[" * 100_000, r":1: is not JSON"),
        (b"\n", "at least one item"),
    ],
)
def test_bad_catalogue_says_which_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "catalogue.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        load_items(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", b'id,title,text\na,t,"open\n', r"c\.csv:2: is not CSV"),
        ("c.csv", b'id,title,"text\n', r"c\.csv:1: is not CSV"),
        ("c.csv", b"id,title,text\na,t\n", r"c\.csv:2: 'text' must be a string, got None"),
        ("c.jsonl.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xff\xff\xff", r"cannot be read"),
        ("c.jsonl.gz", b"plain", r"cannot be read"),
    ],
)
def test_bad_csv_or_gzip_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_items(tmp_path / name)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": " ", "relevant": {"a": 1}}, "'query' must be a text"),
        ({"query": "q", "relevant": {}}, "'relevant' must map"),
        ({"query": "q", "relevant": {"b": 1}}, "relevant item 'b' is not in the catalogue"),
        ({"query": "q", "relevant": {"a": 0}}, "grade of 'a' must be finite and above 0, got 0"),
        ({"query": "q", "relevant": {"a": "x"}}, "grade of 'a' must be finite and above 0, got 'x'"),
        ({"query": "q", "relevant": {"a": float("inf")}}, "grade of 'a' must be finite and above 0, got inf"),
    ],
)
def test_bad_query_says_which_line(tmp_path: Path, record: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f":1: .*{message}"):
        load_queries(write_jsonl(tmp_path / "queries.jsonl", [record]), {"a"})


def test_metrics_of_a_worked_example() -> None:
    ranked = [["a", "b", "c", "d"], ["x", "y"]]
    relevant = [{"b": 2.0, "d": 1.0, "e": 1.0}, {"x": 1.0}]
    assert recall_at_k(ranked, relevant, 4) == pytest.approx([2 / 3, 1])
    assert recall_at_k(ranked, relevant, 1) == pytest.approx([0, 1])
    gain = 2 / math.log2(3) + 1 / math.log2(5)
    ideal = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg_at_k(ranked, relevant, 4) == pytest.approx([gain / ideal, 1])


@given(
    vectors=st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=30),
    query=st.lists(st.integers(-3, 3), min_size=4, max_size=4),
    data=st.data(),
)
def test_ranking_is_a_stable_sort(vectors: list[list[int]], query: list[int], data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, len(vectors)))
    titles = [f"title {i % 7}" for i in range(len(vectors))]
    embeddings = np.array(vectors, np.float32)
    catalogue = Catalogue([str(i) for i in range(len(vectors))], titles, embeddings, top_k)
    seen = data.draw(st.lists(st.sampled_from(titles), max_size=4))
    text = "\n".join(title.upper() for title in seen)
    top, scores = catalogue.rank(np.array(query, np.float32), text)
    expected = np.einsum("ij,j->i", embeddings, np.array(query, np.float32))
    named = dict.fromkeys(seen)
    hidden = [i for title in named for i in range(len(titles)) if titles[i] == title][: len(vectors) - top_k]
    hidden = hidden if len(seen) > 1 else []
    order = [i for i in sorted(range(len(vectors)), key=lambda i: (-expected[i], i)) if i not in hidden]
    assert top.tolist() == order[:top_k]
    assert np.array_equal(scores, expected[top])


def test_one_title_alone_is_a_search_for_it() -> None:
    catalogue = Catalogue(["a", "b"], ["Lamp", "Bowl"], np.eye(2, dtype=np.float32), 1)
    embedding = np.array([1, 0], np.float32)
    assert catalogue.rank(embedding, "lamp")[0].tolist() == [0]
    assert catalogue.rank(embedding, "LAMP\nsomething else")[0].tolist() == [1]


def test_a_blank_line_is_no_title() -> None:
    """Of items without one."""
    catalogue = Catalogue(["a", "b", "c"], ["", "", ""], np.eye(3, dtype=np.float32), 1)
    assert catalogue.rank(np.array([1, 0, 0], np.float32), "tent for two\n\nlight one")[0].tolist() == [0]


def test_a_title_named_twice_hides_no_less() -> None:
    catalogue = Catalogue(["a", "b", "c", "d"], ["A", "B", "C", "D"], np.eye(4, dtype=np.float32), 2)
    assert catalogue.rank(np.array([3, 2, 1, 0], np.float32), "A\nA\nB")[0].tolist() == [2, 3]


def test_tiny_data_is_labelled() -> None:
    assert len(items()) == 64
    assert len(queries()) == 24
