"""Tuning: what can be turned, how it is searched, and the build that comes of it."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import builds, cli, switching
from tritonpress_generator.build import build
from tritonpress_generator.errors import InputError
from tritonpress_generator.tune import knobs as turning
from tritonpress_generator.tune import report, written
from tritonpress_generator.tune.climb import Point, Tried
from tritonpress_generator.tune.knobs import Knob, Setting
from tritonpress_generator.tune.load import Measured, Traffic
from tritonpress_generator.tune.session import Found
from tritonpress_generator.verify import verify

LIMIT_MS = 100.0


def step(role: str, *, threads: int | None = None, batch: int = 16, gpu: bool = False) -> pb.ModelConfig:
    kind = pb.ModelInstanceGroup.KIND_GPU if gpu else pb.ModelInstanceGroup.KIND_CPU
    config = pb.ModelConfig(name=f"w_{role}", max_batch_size=batch, instance_group=[pb.ModelInstanceGroup(kind=kind)])
    config.instance_group[0].count = 1
    config.dynamic_batching.SetInParent()
    if threads:
        config.parameters["intra_op_thread_count"].string_value = str(threads)
    return config


def of_steps(*roles: str, cores: int = 4, **more: Any) -> tuple[dict[str, pb.ModelConfig], list[Knob]]:
    threads = {"engine": 2, "model": None if "engine" in roles else 2}
    configs = {f"w_{role}": step(role, threads=threads.get(role)) for role in roles}
    configs["w"] = pb.ModelConfig(name="w", platform="ensemble", max_batch_size=16)
    steps = {role: f"w_{role}" for role in roles}
    return configs, turning.knobs(configs, steps, workload="w", cores=cores, p99_ms=LIMIT_MS, **more)


@pytest.mark.parametrize(
    ("roles", "keys"),
    [
        (("model",), ["model.instances", "model.delay", "model.batch"]),
        (
            ("tokenizer", "engine", "postprocessing"),
            ["engine.instances", "tokenizer.instances", "engine.delay", "engine.batch"],
        ),
        (("engine", "model"), ["engine.instances", "engine.delay", "engine.batch"]),
    ],
)
def test_knobs_are_those_that_a_recipe_has_too(roles: tuple[str, ...], keys: list[str]) -> None:
    _, knobs = of_steps(*roles)
    assert [knob.key for knob in knobs] == [f"w.{key}" for key in keys]


@given(st.data(), st.integers(1, 64), st.booleans())
def test_every_value_of_every_knob_is_read_back_and_leaves_the_others(
    data: st.DataObject, cores: int, gpu: bool
) -> None:
    configs, knobs = of_steps("tokenizer", "engine", "postprocessing", cores=cores, cache=True, preferred=[8, 32])
    if gpu:
        configs["w_engine"] = step("engine", gpu=True)
        steps = {name.removeprefix("w_"): name for name in configs if name != "w"}
        knobs = turning.knobs(configs, steps, workload="w", cores=cores, p99_ms=LIMIT_MS)
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
    assert max(knob.values for knob in knobs if knob.kind == "delay")[-1] == (8000,)
    configs["w_model"].dynamic_batching.default_queue_policy.default_timeout_microseconds = 1500
    knobs = turning.knobs(configs, {"model": "w_model"}, workload="w", cores=4, p99_ms=LIMIT_MS)
    assert max(value for knob in knobs if knob.kind == "delay" for value in knob.values) == (1000,)
    knobs = turning.knobs(configs, {"model": "w_model"}, workload="w", cores=4, p99_ms=3.0)
    assert max(value for knob in knobs if knob.kind == "delay" for value in knob.values) == (500,)


@pytest.fixture
def tuned(tiny_repository: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    shutil.copytree(tiny_repository, folder)
    return folder


def other_setting(knobs: list[Knob]) -> Setting:
    return {knob.key: knob.values[-1] for knob in knobs}


def test_writes_a_build_beside_the_one_that_serves_which_the_recipe_would_write_too(
    tuned: Path, tiny_sources: Path, tmp_path: Path
) -> None:
    (name,) = builds.workloads(tuned)
    manifest = builds.read_manifest(tuned, name)
    configs = turning.read_configs(tuned, manifest, name)
    knobs = turning.knobs(configs, manifest["steps"], workload=name, cores=2, p99_ms=LIMIT_MS, cache=True)
    setting = other_setting(knobs)
    changed = turning.changed(configs, knobs, setting)
    served = (tuned / name / "config.pbtxt").read_bytes()
    new = written.write(tuned, name, configs | changed, {"p99_ms": LIMIT_MS})
    assert (tuned / name / "config.pbtxt").read_bytes() == served
    assert new in {row["build"] for row in builds.listing(tuned, name)}
    switching.promote(tuned, name, new, keep=1)
    assert verify(tuned)
    after = turning.read_configs(tuned, builds.read_manifest(tuned, name), name)
    assert {
        knob.key: turning.KINDS[knob.kind].read(after[knob.models[-1]]) for knob in knobs if knob.kind == "cache"
    } == {f"{name}.ensemble.cache": (1,)}
    # What the lines say, `build` writes.
    recipe = yaml.safe_load((tiny_sources / "recipe.yaml").read_text(encoding="utf-8"))
    for line in written.recipe_lines(knobs, setting, manifest["engine"]):
        for key, value in yaml.safe_load(line).items():
            recipe[key] = {**recipe.get(key, {}), **value} if key == "serve" else value
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "folder": str(tiny_sources)}), encoding="utf-8")
    again = build(path, tmp_path / "again").manifest
    assert again["build"] == new


def test_says_what_decided_and_draws_it(tmp_path: Path) -> None:
    knob = Knob("w", "model", "instances", ("w_model",), (1, 2), ((1, 2), (2, 1), (3, 1)))

    def at(rate: float, p99_ms: float) -> Measured:
        return Measured(rate, p99_ms, 0.9 * p99_ms, 1.1 * p99_ms, p99_ms / 3, 0.0, 1.5, "the CPU", "")

    refused = Measured(202.0, math.inf, math.inf, math.inf, math.inf, 1.0, 0.0, "the server, which refuses it: no", "")
    now, two, three = ({knob.key: value} for value in knob.values)
    first, best = Point(now, at(140, 88), at(147, 121)), Point(two, at(192, 93), at(202, 140))
    tried = [Tried(knob, two, best, best.kept), Tried(knob, three, None, refused)]
    measured = [(now, first.kept), (two, best.kept), (two, at(202, 140)), (three, refused)]
    found = Found(100.0, "L", [knob], first, best, [(first.kept, best.kept)] * 3, tried, measured, True, 7.5, {})
    said = "\n".join(report.summary(found))
    assert "better: kept, and missed at 202/s (140 ms)" in said
    assert "the server, which refuses it: no" in said
    assert "192/s within 100 ms, 1.37 × as it is; confirmed in 3 rounds in turn: p99 93.0 to 93.0 ms" in said
    unconfirmed = replace(found, rounds=[(first.kept, at(192, 130))] * 3, complete=False)
    said = "\n".join(report.summary(unconfirmed))
    assert "not confirmed in 3 rounds" in said and "with more --budget-minutes goes on" in said
    report.write(found, tmp_path / "report.html", {"w": ["serve: {}"]})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    # What could not be served has no place in the plot.
    assert page.count("<circle") == 3
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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--p99-ms", "0"], "--p99-ms must be a number above 0, got 0"),
        (["--p99-ms", "nan"], "--p99-ms must be a number above 0, got nan"),
        (["--p99-ms", "50", "--budget-minutes", "-1"], "--budget-minutes must be a number above 0, got -1"),
        (["--p99-ms", "50", "--cores", "0"], "--cores must be 1 or more, got 0"),
        (["--p99-ms", "50", "--scenario", "missing.yaml"], "scenario missing.yaml: cannot be read"),
        (["--p99-ms", "50", "--scenario", "other.yaml"], "asks 'other', which is no workload of"),
        (["--p99-ms", "50", "--server", "127.0.0.1:1"], "127.0.0.1:1"),
    ],
)
def test_refuses_what_cannot_be_tuned(
    tuned: Path,
    tmp_path: Path,
    options: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    other = {"requests": [{"workload": "classification", "model": "other", "queries": "a.tsv"}]}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    assert cli.main(["tune", str(tuned), *options]) == 2
    assert says in capsys.readouterr().err.strip().splitlines()[-1]


def test_refuses_files_that_have_changed(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (name,) = builds.workloads(tuned)
    step = next(iter(builds.read_manifest(tuned, name)["steps"].values()))
    with (tuned / step / "config.pbtxt").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert cli.main(["tune", str(tuned), "--p99-ms", "50", "--work", str(tmp_path / "work")]) == 2
    assert f"{step}/config.pbtxt has changed" in capsys.readouterr().err


def test_refuses_a_build_that_could_not_be_switched(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = builds.workloads(tuned)
    path = tuned / name / f"manifest.{builds.served(tuned, name)}.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["ensemble"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert cli.main(["tune", str(tuned), "--p99-ms", "50", "--work", str(tmp_path / "work")]) == 2
    assert "builds cannot be switched; build it again" in capsys.readouterr().err


@pytest.mark.slow
def test_tunes_under_load_and_goes_on_where_it_was(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = builds.workloads(tuned)
    command = ["tune", str(tuned), "--p99-ms", "500", "--budget-minutes", "1.5", "--work", str(tmp_path / "work")]
    before = (tuned / name / "config.pbtxt").read_bytes()
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "as it is" in said and "kept" in said
    assert (tuned / name / "config.pbtxt").read_bytes() == before
    page = (tmp_path / "work" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "as it is" in page
    (journal,) = (tmp_path / "work").glob("*.jsonl")
    lines = journal.read_text(encoding="utf-8").splitlines()
    # A kill in the middle of a line: what follows is measured again, what came before is not.
    journal.write_text("\n".join([*lines[:2], lines[2][:20]]), encoding="utf-8")
    assert cli.main(command) == 0
    again = journal.read_text(encoding="utf-8").splitlines()
    assert again[:2] == lines[:2]
    assert json.loads(again[2])["result"] != json.loads(lines[2])["result"]


@pytest.mark.slow
def test_says_what_binds_where_nothing_keeps_the_limit(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tune", str(tuned), "--p99-ms", "0.05", "--budget-minutes", "1", "--work", str(tmp_path / "work")]
    assert cli.main(command) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "p99 must stay within 0.05 ms" in said and "what binds there is" in said
    assert not (tmp_path / "work" / "report.html").exists()
