"""Scenarios: what is read, and what is refused in one line."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from scenarios import REQUEST, write_scenario
from tritonclient.grpc import service_pb2
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.scenario import Drawn, load_scenario

SHIPPED = sorted((Path(__file__).parents[2] / "loadtests" / "scenarios").glob("*.yaml"))
REPLAY = {"replay": {"file": "moments.txt"}}
PIECES = {"pieces": {"rates_per_s": [1, 2], "durations": [1, 1]}}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_scenario_is_whole(path: Path) -> None:
    loaded = load_scenario(path)
    assert loaded.scenario.name == path.stem
    for kind in loaded.requests:
        assert len(kind.queries) >= 100


def test_a_scenario_is_read_with_its_defaults(folder: Path) -> None:
    loaded = load_scenario(write_scenario(folder))
    assert [stage.users for stage in loaded.scenario.stages] == [1, 6]
    assert loaded.scenario.slo.p99_ms is None
    assert loaded.scenario.slo.error_rate == 0.01
    (kind,) = loaded.requests
    assert kind.request.weight == 1
    assert kind.request.slo is None
    assert kind.queries == [{"query": "red lamp"}, {"query": "a blue chair"}]


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
        ({"modell": "a"}, "`modell` is no key of a scenario; allowed here: name, requests, stages, shape"),
        ({"stages": [{"users": 1, "duration": 1}]}, "`stages.0.duration_s` is missing"),
        ({"stages": [{"users": 1, "duration_s": 1, "rate": 1}]}, "`stages.0.rate` is no key .*: users, rate_per_s, "),
        ({"stages": [{"users": 1, "rate_per_s": 1, "duration_s": 1}]}, "`stages.0`: a stage has `users`, or `rate_per"),
        ({"stages": [{"users": 1, "arrivals": "poisson", "duration_s": 1}]}, "`arrivals` belongs to a stage with"),
        ({"stages": [{"rate_per_s": 0, "duration_s": 1}]}, "`stages.0.rate_per_s`: .*greater than 0, got 0"),
        ({"shape": {"soak": {"rate_per_s": 1, "duration_s": 1}}}, "a scenario has `stages` or a `shape`: one of them"),
        ({"stages": None}, "a scenario has `stages` or a `shape`: one of them"),
        ({"stages": None, "shape": {}}, "`shape` must be one of step, spike"),
        (
            {"stages": None, "shape": {"breakpoint": {"from_per_s": 1, "to_per_s": 9}}},
            "a search for a breakpoint needs `slo.p99_ms` or `slo.p999_ms`",
        ),
        (
            {
                "stages": None,
                "shape": {"recovery": {"base_per_s": 5, "peak_per_s": 50}},
                "slo": {"p999_ms": 100},
            },
            "a recovery needs `slo.p99_ms`: it is told by windows of time, of which each has too few requests",
        ),
        (
            {"stages": None, "shape": {"step": {"users": [0], "duration_s": 5}}},
            "`shape.step.users.0`: .*greater than or equal to 1, got 0",
        ),
        (
            {"stages": None, "shape": {"step": {"users": [1, 20_000], "duration_s": 5}}},
            "`shape.step.users.1`: .*less than or equal to 10000, got 20000",
        ),
        *(
            (
                {"stages": None, "shape": {shape: {**keys, "arrivals": REPLAY}}, "slo": {"p99_ms": 9}},
                f"`shape.{shape}.arrivals`: must go by a rate that is given; a replay, and pieces, have their own",
            )
            for shape, keys in {
                "step": {"rates_per_s": [5], "duration_s": 5},
                "soak": {"rate_per_s": 5, "duration_s": 5},
                "breakpoint": {"from_per_s": 1, "to_per_s": 9},
            }.items()
        ),
        ({"stages": None, "shape": {"step": None}}, "`shape`: `shape` must be one of step, spike"),
        ({"stages": None, "shape": {"soak": None, "spike": None}}, "`shape` must be one of step, spike"),
        (
            {"stages": None, "shape": {"spike": {"base_per_s": 1, "peak_per_s": 9, "base_s": 600, "peak_s": 1}}},
            "the shortest part must be at least a 500th of the whole, got 1 of 1201; lengthen it",
        ),
        (
            {"stages": None, "shape": {"spike": {"base_per_s": 1, "peak_per_s": 9, "base_s": 6e5, "peak_s": 6e5}}},
            "`duration_s`: .*less than or equal to 604800, got 1800000",
        ),
        (
            {"stages": [{"arrivals": {"pieces": {"rates_per_s": [1, 2], "durations": [1]}}, "duration_s": 1}]},
            "`stages.0.arrivals.pieces`: `durations` must be 2, one a rate, got 1",
        ),
        (
            {"stages": [{"arrivals": {"pieces": {"rates": [1, 2]}}, "duration_s": 1}]},
            "`stages.0.arrivals.pieces.rates_per_s` is missing",
        ),
        (
            {"stages": [{"rate_per_s": 3, "arrivals": PIECES, "duration_s": 1}]},
            "`stages.0`: a stage has `users`, or `rate_per_s`, or `arrivals` with rates of their own",
        ),
        ({"request": {"words": {"up_to": [5, 9], "shares": [0.5, 0.4]}}}, "`shares` must add up to 1, got 0.9"),
        ({"request": {"words": {"up_to": [1, 9], "shares": [0.5, 0.5]}}}, "no query has 1 to 1 words, 50% should"),
        (
            {"stages": [{"arrivals": {"replay": {"file": "none.txt"}}, "duration_s": 1}]},
            "cannot read `replay.file` .*none.txt",
        ),
        ({"slo": {"p99": 1}}, "`slo.p99` is no key of a scenario; allowed here: p99_ms, p999_ms, error_rate"),
        ({"stages": []}, "`stages`: .*at least 1 item"),
        ({"stages": [{"users": 0, "duration_s": 1}]}, "`stages.0.users`: .*greater than or equal to 1, got 0"),
        ({"timeout_s": -1}, "`timeout_s`: .*greater than 0, got -1"),
        ({"slo": {"error_rate": 2}}, "`slo.error_rate`: .*less than or equal to 1, got 2"),
        ({"name": None}, "`name` is missing"),
        ({"workload": "recommendation"}, "`workload` is no key of a scenario; allowed here: name, requests"),
        ({"requests": []}, "`requests`: .*at least 1 item"),
        ({"requests": [REQUEST, REQUEST]}, "`requests.1.model` 'recommendation' is named twice; merge the entries"),
        (
            {"request": {"modell": "a"}},
            "`requests.0.modell` is no key .*: workload, model, queries, weight, words, slo$",
        ),
        ({"request": {"slo": {"p99": 1}}}, "`requests.0.slo.p99` is no key .*: p99_ms, p999_ms, error_rate$"),
        ({"request": {"model": None}}, "`requests.0.model` is missing"),
        ({"request": {"weight": 0}}, "`requests.0.weight`: .*greater than 0, got 0"),
        ({"request": {"weight": float("inf")}}, "`requests.0.weight`: .*less than or equal to 1000000, got inf"),
        (
            {"request": {"workload": "translation"}},
            "`requests.0`: `workload` 'translation' is unknown; known: classification, question_answering, recomm",
        ),
        ({"request": {"queries": "nowhere.jsonl"}}, "cannot read `queries` .*nowhere.jsonl: No such file"),
        ({"request": {"queries": "scenario.yaml"}}, "scenario.yaml must end in .jsonl, got 'scenario.yaml'; convert"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words) as caught:
        load_scenario(write_scenario(folder, **changes))
    assert "\n" not in str(caught.value)


def test_requests_are_drawn_by_weight_and_fixed_by_the_seed(folder: Path) -> None:
    requests = [{**REQUEST, "model": model, "weight": weight} for model, weight in (("a", 2), ("b", 2), ("c", 1))]

    def drawn(drawer: str, count: int = 5000, **changes: Any) -> list[Drawn]:
        loaded = load_scenario(write_scenario(folder, requests=requests, **changes))
        return list(islice(loaded.draws(drawer), count))

    first = drawn("user 0")
    assert drawn("user 0") == first
    assert drawn("user 1", 50) != first[:50]
    assert drawn("user 0", 50, seed=1) != first[:50]
    shares = [sum(place == each.place for each in first) / len(first) for place in range(3)]
    assert shares == pytest.approx([0.4, 0.4, 0.2], abs=0.03)
    sent = [service_pb2.ModelInferRequest.FromString(each.payload) for each in first[:200]]
    assert {request.model_name for request in sent} == set("abc")
    assert {request.raw_input_contents[0][4:] for request in sent} == {b"red lamp", b"a blue chair"}


def test_queries_have_the_lengths_that_a_histogram_asks_for(folder: Path) -> None:
    words = {"up_to": [2, 3, 10], "shares": [0.1, 0.9, 0]}
    loaded = load_scenario(write_scenario(folder, request={"words": words}))
    drawn = list(islice(loaded.draws("x"), 2000))
    blue = [each for each in drawn if b"a blue chair" in each.payload]
    assert len(blue) / len(drawn) == pytest.approx(0.9, abs=0.03)
    assert {each.up_to for each in blue} == {4}
    assert loaded.requests[0].class_shares() == pytest.approx({2: 0.1, 4: 0.9})
    assert sum(loaded.requests[0].drawn_words()) / 10_000 == pytest.approx(2.9, abs=0.05)


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
