"""Scenarios: what is read, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scenarios import write_scenario
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.scenario import load_scenario

SHIPPED = sorted((Path(__file__).parents[2] / "loadtests" / "scenarios").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_scenario_is_whole(path: Path) -> None:
    loaded = load_scenario(path)
    assert loaded.scenario.name == path.stem
    assert len(loaded.queries) >= 100
    assert set(loaded.queries[0]) == set(loaded.workload.KEYS)


def test_a_scenario_is_read_with_its_defaults(folder: Path) -> None:
    loaded = load_scenario(write_scenario(folder))
    assert [stage.users for stage in loaded.scenario.stages] == [1, 6]
    assert loaded.scenario.slo.p99_ms is None
    assert loaded.scenario.slo.error_rate == 0.01
    assert loaded.queries == [{"query": "red lamp"}, {"query": "a blue chair"}]


def test_the_hash_covers_the_queries_too(folder: Path) -> None:
    first = load_scenario(write_scenario(folder)).sha256
    assert load_scenario(write_scenario(folder)).sha256 == first
    assert load_scenario(write_scenario(folder, seed=1)).sha256 != first
    write_scenario(folder)
    (folder / "queries.jsonl").write_text('{"query": "other"}\n')
    assert load_scenario(folder / "scenario.yaml").sha256 != first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modell": "a"}, "`modell` is no key of a scenario; allowed here: name, workload, model, queries, stages"),
        ({"stages": [{"users": 1, "duration": 1}]}, "`stages.0.duration_s` is missing"),
        ({"stages": [{"users": 1, "duration_s": 1, "rate": 1}]}, "`stages.0.rate` is no key .*: users, duration_s$"),
        ({"slo": {"p99": 1}}, "`slo.p99` is no key of a scenario; allowed here: p99_ms, error_rate"),
        ({"stages": []}, "`stages`: .*at least 1 item"),
        ({"stages": [{"users": 0, "duration_s": 1}]}, "`stages.0.users`: .*greater than or equal to 1, got 0"),
        ({"timeout_s": -1}, "`timeout_s`: .*greater than 0, got -1"),
        ({"slo": {"error_rate": 2}}, "`slo.error_rate`: .*less than or equal to 1, got 2"),
        ({"name": None}, "`name` is missing"),
        ({"workload": "translation"}, "`workload` 'translation' is unknown; known: recommendation"),
        ({"queries": "nowhere.jsonl"}, "cannot read `queries` .*nowhere.jsonl: No such file"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words) as caught:
        load_scenario(write_scenario(folder, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "holds no query"),
        (b"\n\n", "holds no query"),
        (b"red lamp\n", ":1 is not JSON"),
        (b'{"query": "a"}\n{"text": "a"}\n', ":2 must be an object with text under: query"),
        (b'{"query": 3}\n', ":1 must be an object"),
        (b'{"query": "caf\xe9"}\n', "is not UTF-8"),
    ],
)
def test_bad_queries_are_named(folder: Path, text: bytes, words: str) -> None:
    (folder / "queries.jsonl").write_bytes(text)
    with pytest.raises(ScenarioError, match=words):
        load_scenario(write_scenario(folder))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not YAML"),
        ("- a", "must be a mapping"),
        ("", "must be a mapping"),
        ("just text", "must be a mapping"),
    ],
)
def test_files_that_are_no_scenario(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=words):
        load_scenario(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"cannot read scenario .*nowhere\.yaml: No such file"):
        load_scenario(tmp_path / "nowhere.yaml")
