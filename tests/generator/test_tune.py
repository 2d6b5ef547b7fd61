"""Tuning: what can be turned, what is asked, and how what was found is told."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonpress_generator.errors import InputError
from tritonpress_generator.tune import knobs as turning
from tritonpress_generator.tune import report
from tritonpress_generator.tune.climb import Point, Tried
from tritonpress_generator.tune.knobs import Knob
from tritonpress_generator.tune.load import Measured, Traffic
from tritonpress_generator.tune.session import Found
from tunings import LIMIT_MS, at, of_steps, step


@pytest.mark.parametrize(
    ("roles", "keys"),
    [
        (("model",), ["model.instances", "model.delay", "model.batch"]),
        (
            ("tokenizer", "engine", "postprocessing"),
            ["engine.instances", "tokenizer.instances", "engine.delay", "engine.batch"],
        ),
        # What a step sends to an engine that it calls is of the size that it was built for.
        (("engine", "model"), ["engine.instances", "engine.delay"]),
    ],
)
def test_knobs_are_those_that_a_recipe_has_too(roles: tuple[str, ...], keys: list[str]) -> None:
    _, knobs = of_steps(*roles)
    assert [knob.key for knob in knobs] == [f"w.{key}" for key in keys]


def test_an_engine_that_is_called_with_packed_tokens_may_have_other_batches() -> None:
    configs, _ = of_steps("engine", "model")
    configs["w_engine"].input.add(name="lengths")
    steps = {role: f"w_{role}" for role in ("engine", "model")}
    knobs = turning.knobs(configs, steps, workload="w", engine="onnxruntime", cores=4, p99_ms=LIMIT_MS)
    assert [knob.key for knob in knobs] == ["w.engine.instances", "w.engine.delay", "w.engine.batch"]


def test_what_no_recipe_can_tell_the_engine_is_no_knob() -> None:
    _, knobs = of_steps("tokenizer", "engine", "postprocessing", engine="onnxruntime_edge")
    assert [knob.key for knob in knobs] == ["w.tokenizer.instances", "w.engine.delay", "w.engine.batch"]
    with pytest.raises(InputError, match="unknown word 'onnx'"):
        of_steps("model", engine="onnx")


@given(st.data(), st.integers(1, 64), st.booleans())
def test_every_value_of_every_knob_is_read_back_and_leaves_the_others(
    data: st.DataObject, cores: int, gpu: bool
) -> None:
    configs, knobs = of_steps("tokenizer", "engine", "postprocessing", cores=cores, cache=True, preferred=[8, 32])
    if gpu:
        configs["w_engine"] = step("engine", gpu=True)
        steps = {name.removeprefix("w_"): name for name in configs if name != "w"}
        knobs = turning.knobs(configs, steps, workload="w", engine="tensorrt", cores=cores, p99_ms=LIMIT_MS)
    setting = {knob.key: data.draw(st.sampled_from(knob.values)) for knob in knobs}
    changed = turning.changed(configs, knobs, setting)
    for knob in knobs:
        for model in knob.models:
            assert turning.KINDS[knob.kind].read(changed.get(model, configs[model])) == setting[knob.key]
    assert all(config != configs[name] for name, config in changed.items())
    engine = changed.get("w_engine", configs["w_engine"])
    assert all(size <= engine.max_batch_size for size in engine.dynamic_batching.preferred_batch_size)
    # A batch of the ensemble is one of each of its steps.
    assert len({config.max_batch_size for config in (configs | changed).values()}) == 1
    assert turning.changed(configs, knobs, {knob.key: knob.now for knob in knobs}) == {}


def test_delays_end_before_requests_time_out_and_before_the_limit() -> None:
    configs, knobs = of_steps("model")
    steps = {"model": "w_model"}
    assert max(knob.values for knob in knobs if knob.kind == "delay")[-1] == (8000,)
    configs["w_model"].dynamic_batching.default_queue_policy.default_timeout_microseconds = 1500
    knobs = turning.knobs(configs, steps, workload="w", engine="onnxruntime", cores=4, p99_ms=LIMIT_MS)
    assert max(value for knob in knobs if knob.kind == "delay" for value in knob.values) == (1000,)
    knobs = turning.knobs(configs, steps, workload="w", engine="onnxruntime", cores=4, p99_ms=3.0)
    assert max(value for knob in knobs if knob.kind == "delay" for value in knob.values) == (500,)


def test_instances_that_a_build_warns_of_or_refuses_are_not_tried() -> None:
    configs, _ = of_steps("model")
    steps = {"model": "w_model"}

    def counts() -> set[int]:
        knobs = turning.knobs(configs, steps, workload="w", engine="onnxruntime", cores=4, p99_ms=LIMIT_MS)
        return {value[0] for knob in knobs if knob.kind == "instances" for value in knob.values}

    (group,) = configs["w_model"].instance_group
    group.count = 2
    assert counts() == {1, 2, 3, 4, 5}
    configs["w_model"].dynamic_batching.priority_levels = 2
    assert counts() == {2, 3, 4, 5}
    configs["w_model"].dynamic_batching.priority_levels = 0
    group.count = 1
    group.rate_limiter.resources.add(name="processor", count=1)
    assert counts() <= {1}


def test_the_front_is_of_what_no_other_measurement_beats_in_both() -> None:
    failed = replace(at(400, 10), failed=0.5)
    measured = [at(100, 20), at(200, 20), at(200, 90), at(250, 95), at(240, 99), failed, at(300, 120)]
    assert report._front(measured) == {1, 3, 6}
    assert report._stairs([(1, 9), (2, 8), (4, 3)]) == "M1.0,9.0V8.0H2.0V3.0H4.0"


def test_a_generator_that_is_late_has_not_made_the_server_quicker() -> None:
    late = replace(at(100, 49), bottleneck="was 32.4 ms late at p99")
    assert late.keeps(500)
    assert not late.keeps(40)
    assert late.fault == "the load generator was 32.4 ms late at p99"
    assert report._front([late, replace(late, sent=False), replace(late, failed=0.1)]) == {0}
    # One that gave up has asked for less.
    assert not replace(late, sent=False, bottleneck="offered 50 of 100/s").keeps(500)
    assert not replace(at(100, 49), failed=0.1).keeps(500)


def test_the_same_questions_are_the_same_traffic_wherever_they_lie(tmp_path: Path) -> None:
    manifest = {"task": "classification", "golden": {"requests": [{"inputs": {"TEXT": "a lamp"}}]}}
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    first, second = (Traffic.golden({"w": manifest}, folder) for folder in folders)
    assert first.identity == second.identity
    path = folders[0] / "scenario.yaml"
    path.write_text("requests: [{workload: classification, model: w, queries: w.jsonl}]\n", encoding="utf-8")
    before = Traffic.read(path).identity
    (folders[0] / "w.jsonl").write_text('{"text": "a chair"}\n', encoding="utf-8")
    assert Traffic.read(path).identity != before
    path.write_text(path.read_text(encoding="utf-8") + "timeout_s: 3\n", encoding="utf-8")
    assert Traffic.read(path).identity not in {before, first.identity}
    (folders[0] / "w.jsonl").unlink()
    with pytest.raises(InputError, match=r"scenario: its queries .*w\.jsonl cannot be read \(is no file\)"):
        _ = Traffic.read(path).identity


def test_says_what_decided_and_draws_it(tmp_path: Path) -> None:
    knob = Knob("w", "model", "instances", ("w_model",), (1, 2), ((1, 2), (2, 1), (3, 1)))

    refused = Measured(202.0, math.inf, math.inf, math.inf, math.inf, 1.0, 0.0, "the server, which refuses it: no", "")
    now, two, three = ({knob.key: value} for value in knob.values)
    first, best = Point(now, at(140, 88), at(147, 121)), Point(two, at(192, 93), at(202, 140))
    tried = [Tried(knob, two, best, best.kept), Tried(knob, three, None, refused)]
    measured = [(now, first.kept), (two, best.kept), (two, at(202, 140)), (three, refused)]
    found = Found(100.0, "L", [knob], first, best, [(at(192, 151), best.kept)] * 3, tried, measured, True, 7.5)
    said = "\n".join(report.summary(found))
    assert "better: kept, and missed at 202/s (140 ms)" in said
    assert "the server, which refuses it: no" in said
    assert "192/s within 100 ms, 1.37 × as it is; confirmed in turn: kept in 3 of 3 rounds (p99 93.0 to" in said
    assert "(p99 93.0 to 93.0 ms), as it is in 0 of 3 rounds (p99 151.0 to 151.0 ms) at the same rate" in said
    assert "--budget-minutes" not in said
    slow = replace(refused, rate_per_s=192.0)
    said = "\n".join(report.summary(replace(found, rounds=[(slow, best.kept), (at(192, 151), best.kept)])))
    assert "as it is in 0 of 2 rounds (p99 151.0 to 151.0 ms, 1 times not all answered) at" in said
    # What the configs as they are sustain too has not gained.
    no_better = replace(found, rounds=[(at(192, 95), best.kept)] * 3)
    said = "\n".join(report.summary(no_better))
    assert "; not confirmed in turn: kept in 3 of 3 rounds (p99 93.0" in said
    assert "as it is in 3 of 3 rounds (" in said
    better = replace(found, rounds=[(at(192, 95), best.kept), *found.rounds[1:]])
    assert better.confirmed and not no_better.confirmed
    mostly = replace(found, rounds=[found.rounds[0], *no_better.rounds[1:]])
    assert not mostly.confirmed
    unconfirmed = replace(found, rounds=[(at(192, 151), at(192, 130))] * 3, complete=False)
    said = "\n".join(report.summary(unconfirmed))
    assert "not confirmed in turn: kept in 0 of 3 rounds" in said and "with more --budget-minutes goes on" in said
    said = "\n".join(report.summary(replace(found, rounds=found.rounds[:1])))
    assert (
        "confirmed in turn: kept in 1 of 1 rounds" in said and "the time was over after 1 of 3 rounds in turn" in said
    )
    said = "\n".join(report.summary(replace(found, rounds=[])))
    assert "not confirmed, since no time was left" in said and "the time was over after 0 of 3 rounds in turn" in said
    report.write(found, tmp_path / "report.html", {"w": ["serve: {}"]})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    # What could not be served has no place in the plot.
    assert page.count("<title>") == 1 + 3
    # 192/s with 93 ms is better than 202/s with 140 ms in one and worse in the other; all have a place on the front.
    assert page.count("<circle class='pareto'") == 3
    assert page.count("<polyline") == 2
    assert "inf" not in page.replace("info", "")
    assert json.dumps(report.manifest_entry(found))


def test_reads_a_scenario_and_refuses_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text("requests: [{workload: classification, model: c, queries: texts.tsv}]\nseed: 3\n", encoding="utf-8")
    traffic = Traffic.read(path)
    assert traffic.models == ["c"]
    assert traffic.requests[0]["queries"] == str(tmp_path / "texts.tsv")
    for text in ("requests: 3", "[", "requests: [{model: c}]", "- a"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="scenario"):
            Traffic.read(path)
