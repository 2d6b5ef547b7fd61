"""The search as a command: what it finds builds again, a killed one goes on, and the gate has the last word."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from tiny_search import COARSE, DISTILL, PRUNE, QUICK, SPACE, copied, memorised, results, trained, without_times
from tritonpress_generator import cli, repository
from tritonpress_generator import recipe as recipes
from tritonpress_generator.build import build
from tritonpress_generator.progress import Progress
from tritonpress_generator.search import report
from tritonpress_generator.search.estimate import Estimator
from tritonpress_generator.search.run import Found, search
from tritonpress_generator.search.space import Candidate
from tritonpress_generator.search.trials import costs
from tritonpress_generator.workload import Workload


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    return trained(folder, passes=[{"prune": PRUNE}], search={**QUICK, "trials": 4, "space": SPACE})


@pytest.fixture(scope="module")
def found(source: Path) -> Found:
    """What a search in one go finds."""
    return search(source, source.parent / "out", work=source.parent / "work", progress=Progress(shown=False))


def test_search_finds_a_front_and_builds_its_best(source: Path, found: Found) -> None:
    assert found.points
    scores = [point.trial.score for point in found.points]
    sizes = [point.trial.size_bytes for point in found.points]
    assert sizes == sorted(sizes)
    assert min(scores) >= found.floor > 0
    kinds = [line["kind"] for line in results(source.parent / "work")]
    assert kinds[0] == "score"
    assert kinds.count("trial") == 4
    assert kinds.count("build") >= len(found.points)
    manifest = repository.read_manifest(source.parent / "out", "recommendation")
    assert manifest["build"] == found.points[0].build
    assert cli.main(["verify", str(source.parent / "out")]) == 0
    assert sizes[0] < next(t.size_bytes for t in found.trials if t.candidate == found.reference)


@pytest.mark.slow
def test_every_recipe_builds_to_the_recorded_metric_and_hash(source: Path, found: Found, tmp_path: Path) -> None:
    assert sorted(found.folder.glob("*.yaml")) == [point.recipe for point in found.points]
    assert found.folder == source.with_name("recipe.search")
    for point in found.points:
        # Without what the search has kept: the recipe says all that it needs.
        built = build(point.recipe, tmp_path / point.recipe.stem, progress=Progress(shown=False))
        assert built.manifest["build"] == point.build
        assert built.manifest["gate"]["served"] == point.gate["served"]
        header = point.recipe.read_text(encoding="utf-8")
        assert f"build {point.build}\n" in header
        assert f"ndcg@10 {point.gate['served']:.6f}" in header


SEARCH_UNTIL_KILLED = """
import sys, time
from tritonpress_generator.cli import main
from tritonpress_generator.journal import Journal

put, written = Journal.put, []

def put_three(self, key, about, result):
    put(self, key, about, result)
    written.append(key)
    if len(written) == 3:
        time.sleep(600)

Journal.put = put_three
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_search_that_is_killed_goes_on_and_finds_the_same(source: Path, found: Found, tmp_path: Path) -> None:
    recipe, work = copied(source, "killed"), tmp_path / "work"
    options = ["--out", str(tmp_path / "out"), "--work", str(work)]
    command = [sys.executable, "-c", SEARCH_UNTIL_KILLED, "search", str(recipe), *options]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            end = time.monotonic() + 240
            while not any(path.read_bytes().count(b"\n") >= 3 for path in work.glob("search-*/against-*.jsonl")):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.02)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    before = results(work)
    assert len(before) == 3 < len(results(source.parent / "work"))
    again = search(recipe, tmp_path / "out", work=work, progress=Progress(shown=False))
    after = results(work)
    # What was known is not computed again, and what follows is what a search in one go has done.
    assert after[: len(before)] == before
    of_whole, of_killed = (without_times(lines) for lines in (results(source.parent / "work"), after))
    assert [one for one in of_killed if one[0] == "trial"] == [one for one in of_whole if one[0] == "trial"]
    scored = [{one["key"]: one for one in of_scores(lines)} for lines in (of_whole, of_killed)]
    assert all(scored[0][key] == scored[1][key] for key in scored[0].keys() & scored[1].keys())
    # Times differ, and with them which of the points that are equal otherwise is on the front.
    assert {flat(point) for point in again.points} & {flat(point) for point in found.points}
    assert again.points[0].build == found.points[0].build


def of_scores(lines: list[Any]) -> list[dict[str, Any]]:
    return [{"key": Candidate.of(candidate).key, **result} for kind, candidate, result in lines if kind == "score"]


def flat(point: Any) -> tuple[float, int, str]:
    return point.trial.score, point.trial.size_bytes, point.build


def test_search_that_is_done_is_read_again_without_computing(
    source: Path, found: Found, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results(source.parent / "work")
    status = cli.main(
        ["search", str(source), "--out", str(source.parent / "out"), "--work", str(source.parent / "work")]
    )
    assert status == 0
    assert results(source.parent / "work") == before
    printed = capsys.readouterr().out
    assert re.search(rf"^01 {re.escape(found.points[0].label)} ", printed, re.M)
    assert f"build {found.points[0].build}" in printed
    # The first is built already.
    another = re.findall(r"^another point: tritonpress build (\S+)", printed, re.M)
    assert another == [str(point.recipe) for point in found.points[1:2]]
    page = (found.folder / "report.html").read_text(encoding="utf-8")
    # The reference may be one of them: by times as short as this tiny model's it is at times.
    assert len(re.findall(r"<circle class='front(?: reference)?'", page)) == len(found.points)
    assert page.count("<circle") == len(found.trials)
    assert all(point.label in page for point in found.points)
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"(src|href)=", page)
    plot = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + len("</svg>")])
    width, height = map(float, plot.attrib["viewBox"].split()[2:])
    assert all(
        0 < float(circle.attrib["cx"]) < width and 0 < float(circle.attrib["cy"]) < height
        for circle in plot.iter("circle")
    )


def test_reference_on_the_front_is_shown_as_both(source: Path, found: Found, tmp_path: Path) -> None:
    whole = next(trial for trial in found.trials if trial.candidate == found.reference)
    others = [point for point in found.points if point.trial.candidate != found.reference]
    points = [*others, replace(found.points[0], trial=whole)]
    page = report.write(replace(found, points=points, folder=tmp_path), source.name).read_text(encoding="utf-8")
    assert page.count("<circle class='front reference'") == 1
    assert page.count("<circle class='front'") == len(others)
    assert page.count("<circle class='other'") == len(found.trials) - len(points)


@pytest.mark.slow
def test_what_misses_the_metric_is_relaxed_until_it_keeps_it(tmp_path: Path) -> None:
    space = {"layers": [2, 1], "heads": [0.0, 0.5], "ffn": [0.0, 0.9], "vocabulary": [False]}
    passes = [{"prune": {**PRUNE, "round_to": 1}}]
    recipe = memorised(tmp_path, passes=passes, search={**QUICK, "trials": 4, "space": space})
    found = search(recipe, tmp_path / "out", work=tmp_path / "work", progress=Progress(shown=False))
    scored = [line for line in results(tmp_path / "work") if line["kind"] == "score"]
    missed = [i for i, line in enumerate(scored) if line["result"]["score"] < found.floor]
    assert missed
    for i in missed:
        tried, milder = (Candidate.of(line["candidate"]) for line in scored[i : i + 2])
        # Which pass cost the most is this tiny model's; it is that one, and no other, of which there is less.
        most, *_ = costs(scored[i]["result"]["stages"])
        less = {
            "crop": replace(tried, layers=tried.layers + 1),
            "prune": replace(tried, ffn=0.0) if tried.ffn else replace(tried, heads=0.0),
        }
        assert milder == less[most]
    assert all(point.trial.score >= found.floor for point in found.points)


@pytest.mark.slow
def test_what_the_gate_refuses_is_relaxed_until_it_passes(source: Path, tmp_path: Path) -> None:
    recipe = copied(
        source,
        "refused",
        graph=["fuse", COARSE],
        gate={"dataset": "test.jsonl", "metric": "ndcg@10", "keep": 0.5, "agreement": 1.0, "confidence": "point"},
        search={**QUICK, "trials": 1, "space": {"layers": [2, 1], "flops": [0.0], "vocabulary": [False]}},
    )
    found = search(recipe, tmp_path / "out", work=tmp_path / "work", progress=Progress(shown=False))
    lines = results(tmp_path / "work")
    assert any("gate" in line["result"] for line in lines)
    assert any("agreement with FP32's answers must stay at or above 1" in why for why in found.refused.values())
    # A layer is left out of INT8 first; then the precision is given up.
    sensitive = [line for line in lines if line["kind"] == "sensitivity" and line["result"]["layer"] is not None]
    assert sensitive
    excluded = [line["candidate"]["excluded"] for line in lines if line["candidate"]["excluded"]]
    assert excluded[0] == [sensitive[0]["result"]["layer"]]
    assert all(point.gate["agreement"] == 1 for point in found.points)
    assert all(point.trial.candidate.graph == '["fuse"]' for point in found.points)


@pytest.mark.slow
def test_distilled_candidates_are_trained_shortly_first_and_build_again(source: Path, tmp_path: Path) -> None:
    recipe = copied(
        source,
        "distilled",
        passes=[{"prune": PRUNE}, {"distill": DISTILL}],
        search={**QUICK, "trials": 2, "space": {"layers": [1], "vocabulary": [True], "precisions": [["fuse"]]}},
    )
    found = search(recipe, tmp_path / "out", work=tmp_path / "work", progress=Progress(shown=False))
    epochs = [line["candidate"]["epochs"] for line in results(tmp_path / "work") if line["kind"] == "score"]
    assert epochs[:3] == [0.0, 0.5, 2.0]
    distilled = [point for point in found.points if point.trial.candidate.epochs]
    assert distilled
    written = yaml.safe_load(distilled[0].recipe.read_text(encoding="utf-8"))
    assert written["passes"][-1]["distill"] == {**DISTILL, "epochs": distilled[0].trial.candidate.epochs}
    # Trained anew: nothing of the search is there.
    built = build(distilled[0].recipe, tmp_path / "again", work=tmp_path / "other", progress=Progress(shown=False))
    assert built.manifest["build"] == distilled[0].build


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_speed_is_measured_and_lengths_are_chosen_once(source: Path, tmp_path: Path, objective: str) -> None:
    recipe = copied(
        source,
        objective,
        serve={"lengths": "auto"},
        search={**QUICK, "objective": objective, "trials": 2, "space": {"layers": [2, 1], "vocabulary": [False]}},
    )
    found = search(recipe, tmp_path / "out", work=tmp_path / "work", progress=Progress(shown=False))
    (chosen,) = tmp_path.glob("work/search-*/lengths-*.json")
    form = json.loads(chosen.read_text(encoding="utf-8"))
    assert form in {"ragged", "buckets", "exact"}
    for point in found.points:
        assert recipes.load(point.recipe).lengths[0].word == form
        assert recipes.load(point.recipe).folder.resolve() == recipe.parent.resolve()
    # The best by what was measured in turn at the end is the first, and the one that was built.
    speeds = [point.speedup if objective == "throughput" else -point.latency_ms for point in found.points]
    assert speeds[0] > 0 or objective == "latency"
    assert all(np.isfinite([point.texts_per_s, point.latency_ms, point.speedup]).all() for point in found.points)
    if objective == "throughput":
        assert speeds == sorted(speeds, reverse=True)
    measured = [line["result"] for line in results(tmp_path / "work") if line["kind"] == "trial"]
    assert measured
    assert all(result["throughput"] > 0 and result["latency"] > 0 and "to_best" in result for result in measured)


@pytest.mark.slow
def test_candidate_that_cannot_be_made_is_refused_and_the_search_goes_on(source: Path, tmp_path: Path) -> None:
    space = {"layers": [2], "ffn": [0.0, 0.6], "vocabulary": [False], "precisions": [["fuse"]]}
    recipe = copied(
        source, "impossible", passes=[{"prune": {**PRUNE, "round_to": 64}}], search={**QUICK, "space": space}
    )
    found = search(recipe, tmp_path / "out", work=tmp_path / "work", progress=Progress(shown=False))
    assert [point.trial.candidate for point in found.points] == [found.reference]
    assert "ffn must leave every layer 64 at least" in found.refused["2 layers, ffn -60%, fuse"]


def test_estimates_rank_what_is_cut(source: Path) -> None:
    workload = Workload.load(recipes.load(source), Progress(shown=False))
    material = workload.material()
    estimate = Estimator(material.original, material, samples=40, length=32)

    def of(**cut: Any) -> Any:
        whole = {"layers": 2, "heads": 0.0, "ffn": 0.0, "flops": 0.0, "vocabulary": False}
        return estimate(Candidate(**{**whole, **cut}, graph="[]", lengths='"exact"'))

    nothing = of()
    assert nothing.loss == 0
    assert nothing.size_bytes == material.original.size_bytes
    for harder in ({"layers": 1}, {"heads": 0.5}, {"ffn": 0.5}, {"flops": 0.3}):
        cut = of(**harder)
        assert cut.loss > 0
        assert cut.products < nothing.products
        assert cut.size_bytes < nothing.size_bytes
    assert of(layers=1).products == pytest.approx(nothing.products / 2)
    assert of(ffn=0.25).loss < of(ffn=0.5).loss < of(ffn=0.75).loss
    assert of(vocabulary=True).size_bytes < nothing.size_bytes
    assert of(vocabulary=True).loss == 0
    assert of(flops=0.99) is None
    assert of(heads=0.9) is None
    assert np.isfinite(of(layers=1, flops=0.5).loss)
