"""Files of queries: what each workload reads, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scenarios import write_scenario
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.query_files import Query
from tritonpress_loadtests.scenario import load_scenario


def read(folder: Path, workload: str, name: str, content: str | bytes) -> list[Query]:
    """Returns what the workload reads from a file with that content."""
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    scenario = write_scenario(folder, request={"workload": workload, "model": "m", "queries": name})
    return load_scenario(scenario).requests[0].queries


def squad(*paragraphs: Any) -> str:
    """Returns a file in SQuAD's format with one article of those paragraphs."""
    return json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": list(paragraphs)}]})


def test_squad_gives_all_questions_with_their_contexts(tmp_path: Path) -> None:
    answer = {"text": "red", "answer_start": 0}
    content = squad(
        {
            "context": "red lamps",
            "qas": [
                {"id": "1", "question": "what colour?", "answers": [answer]},
                {"id": "2", "question": "how many?", "answers": [], "is_impossible": True},
            ],
        },
        {"context": "no question", "qas": []},
        {"context": "blue \u2028 chairs", "qas": [{"id": "3", "question": "which?", "answers": []}]},
    )
    assert read(tmp_path, "question_answering", "dev.json", content) == [
        {"question": "what colour?", "context": "red lamps"},
        {"question": "how many?", "context": "red lamps"},
        {"question": "which?", "context": "blue \u2028 chairs"},
    ]


def test_jsonl_keeps_the_keys_that_are_asked(tmp_path: Path) -> None:
    line = '{"question": "which?", "context": "a\u2028b", "id": 3}\r\n\n'
    assert read(tmp_path, "question_answering", "q.jsonl", line) == [{"question": "which?", "context": "a\u2028b"}]
    assert read(tmp_path, "classification", "t.jsonl", '{"text": "a", "label": "b"}') == [{"text": "a"}]


def test_tsv_is_read_by_its_header_and_without_quoting(tmp_path: Path) -> None:
    content = 'label\ttext\npositive\t"Up" 5 %, says CEO\n\nnegative\t"Down\r\n'
    texts = [query["text"] for query in read(tmp_path, "classification", "news.tsv", content)]
    assert texts == ['"Up" 5 %, says CEO', '"Down']
    assert read(tmp_path, "classification", "bom.tsv", "\ufefftext\tlabel\na\tb\n") == [{"text": "a"}]


@pytest.mark.parametrize(
    ("workload", "name", "content", "words"),
    [
        ("recommendation", "q.jsonl", "", r"`queries` \S+q.jsonl holds no query; write at least one"),
        ("recommendation", "q.jsonl", "\n\n", "holds no query"),
        ("recommendation", "q.jsonl", "red lamp\n", r"q.jsonl:1 is not JSON"),
        ("recommendation", "q.jsonl", "[" * 100_000, r"q.jsonl:1 is not JSON"),
        ("question_answering", "q.json", "9" * 5_000, r"q.json is not JSON"),
        ("recommendation", "q.jsonl", '{"query": "a"}\n{"text": "a"}\n', ":2 must be an object with text under: query"),
        ("recommendation", "q.jsonl", '{"query": 3}\n', ":1 must be an object"),
        ("recommendation", "q.jsonl", b'{"query": "caf\xe9"}\n', "is not UTF-8"),
        ("recommendation", "q.tsv", "query\na\n", "must end in .jsonl, got 'q.tsv'; convert or rename it"),
        ("classification", "t", "text\na\n", "must end in .tsv or .jsonl, got 't'; convert or rename it"),
        ("classification", "t.tsv", "text\tlabel\n", "holds no query"),
        ("classification", "t.tsv", "", "t.tsv:1 must name the column `text`, got nothing"),
        ("classification", "t.tsv", "\nwords\tlabel\na\tb\n", "t.tsv:2 must name the column `text`, got words, label;"),
        ("classification", "t.tsv", "text\tlabel\na\tb\na\n", "t.tsv:3 must have 2 values .*, got 1; put one tab"),
        ("classification", "t.tsv", "text\tlabel\na\tb\tc\n", "t.tsv:2 must have 2 values .*, got 3; put one tab"),
        ("question_answering", "q.json", "{", r"q.json is not JSON \(.*line 1.*\); a \*.json file must be in SQuAD"),
        ("question_answering", "q.json", "[]", "`data` must be a list"),
        ("question_answering", "q.json", '{"data": []}', "holds no query"),
        ("question_answering", "q.json", '{"data": [3]}', "`data.0` must be an object"),
        ("question_answering", "q.json", '{"data": [{}]}', "`data.0.paragraphs` must be a list"),
        ("question_answering", "q.json", squad({"qas": []}), "`data.0.paragraphs.0.context` must be text"),
        (
            "question_answering",
            "q.json",
            squad({"context": "a", "qas": []}, {"context": "a", "qas": [{"question": None}]}),
            "`data.0.paragraphs.1.qas.0.question` must be text",
        ),
        ("question_answering", "q.jsonl", '{"question": "a"}', ":1 must be an object with text under: question, cont"),
    ],
)
def test_bad_queries_are_named(tmp_path: Path, workload: str, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(ScenarioError, match=words) as caught:
        read(tmp_path, workload, name, content)
    assert "\n" not in str(caught.value)
