"""What a search foresees of its time, and does not begin; which layer a precision disturbs the most."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_search import DISTILL, PRUNE, QUICK, copied, trained
from tritonpress_generator import cli
from tritonpress_generator import recipe as recipes
from tritonpress_generator.journal import Journal
from tritonpress_generator.progress import Progress
from tritonpress_generator.search.budget import Budget
from tritonpress_generator.search.estimate import Estimator
from tritonpress_generator.search.loop import Loop
from tritonpress_generator.search.measure import Workshop
from tritonpress_generator.search.space import Candidate, Space
from tritonpress_generator.search.trials import Trial
from tritonpress_generator.workload import Workload

ONE_LAYER = {"layers": [1], "vocabulary": [False], "flops": [0.0], "precisions": [["fuse"]]}
NEVER = 1e9
"""More epochs than any budget has time for."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    return trained(folder, passes=[{"prune": PRUNE}, {"distill": DISTILL}], search={**QUICK, "space": ONE_LAYER})


def parts(path: Path, work: Path) -> tuple[Space, Workshop, Loop]:
    """Returns what a search of the recipe at `path` is made of, before its first candidate."""
    recipe, say = recipes.load(path), Progress(shown=False)
    workload = Workload.load(recipe, say)
    material = workload.material(work=work)
    config: Any = recipe.search
    space = Space.load(recipe, config, depth=2, kinds=["ffn", "heads"], lengths="exact")
    workshop = Workshop(workload, material, space, config, work / "engines")
    journal = Journal(work / "journal.jsonl")
    budget = Budget(config.budget_minutes, space, journal, began=time.monotonic(), training_s=workshop.training_s)
    estimator = Estimator(material.original, material, samples=40, length=32)
    loop = Loop(workshop, space, config, estimator=estimator, journal=journal, budget=budget, floor=0.0, say=say)
    return space, workshop, loop


def test_budget_too_short_for_the_first_distillation_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = copied(source, "long", passes=[{"prune": PRUNE}, {"distill": {**DISTILL, "epochs": NEVER}}])
    assert cli.main(["search", str(recipe), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    said = re.search(
        r"long\.yaml: search\.budget_minutes must be at least ([\d.]+) for one candidate on this machine \(([\d.]+) of "
        r"it to distil for 2\.5e\+08 epochs\), got 30; raise it, or lower passes\.distill\.samples or epochs$",
        error,
    )
    assert said is not None, error
    assert 30 < float(said[2]) < float(said[1])
    assert not [*(tmp_path / "work").glob("distill-*")]


def test_training_that_does_not_fit_is_not_begun_and_said(source: Path, tmp_path: Path) -> None:
    space, workshop, loop = parts(source, tmp_path)
    reference = loop.begin()
    (candidate,) = space.all()
    short = space.trained(candidate, first=True)
    assert short.epochs == DISTILL["epochs"] / 4
    endless = replace(short, epochs=NEVER)
    loop.settle(endless)
    assert [*loop.full.values()] == [reference]
    assert re.fullmatch(
        r"not trained: takes about [\d.]+ min, [\d.]+ are left of the budget", loop.refused[space.label(endless)]
    )
    assert not [*tmp_path.glob("distill-*")]
    loop.settle(short)
    assert short.key in loop.full
    assert [*tmp_path.glob("distill-*")]
    # What was trained is there for another precision of it; a longer one is as much slower as the first was.
    assert loop.budget.expected_s(replace(short, excluded=(0,))) == loop.budget.expected_s(candidate)
    assert loop.budget.expected_s(endless) >= loop.budget.expected_s(replace(short, epochs=2.0))
    assert 0 < workshop.training_s(0.5) < workshop.training_s(1.0) < workshop.training_s(NEVER)
    assert workshop.training_s(0.0) == 0


def test_a_training_that_is_found_done_says_how_long_it_took(source: Path, tmp_path: Path) -> None:
    space, _, loop = parts(source, tmp_path)
    loop.begin()
    (candidate,) = space.all()
    short = space.trained(candidate, first=True)
    loop.settle(short)
    took_s = loop.full[short.key].trained_s
    assert 0 < took_s <= loop.full[short.key].seconds
    # Another search of the same work, as with another gate.
    (tmp_path / "journal.jsonl").unlink()
    shutil.rmtree(tmp_path / "engines")
    _, _, again = parts(source, tmp_path)
    again.begin()
    again.settle(short)
    assert again.full[short.key].trained_s == took_s
    other = replace(short, epochs=2 * short.epochs)
    assert again.budget.expected_s(other) - again.budget.expected_s(candidate) >= took_s


def test_the_points_of_the_end_are_timed_a_few_at_a_time(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"layers": [2], "flops": [0.0, 0.1, 0.2, 0.3, 0.4], "vocabulary": [False], "precisions": [["fuse"]]}
    of, workshop, _ = parts(
        copied(source, "points", passes=[{"prune": PRUNE}], search={**QUICK, "space": space}), tmp_path
    )
    timed, at_once = workshop.timed, []

    def counted(candidates: Any) -> Any:
        at_once.append(len(candidates))
        return timed(candidates)

    monkeypatch.setattr(workshop, "timed", counted)
    points = [*of.all()]
    found = workshop.timed_front(of.reference, points)
    assert at_once == [3, 3, 2]
    assert [*found] == [point.key for point in points]
    assert all(own.to(beside).throughput > 0 for own, beside in found.values())
    assert workshop.front_s(5) == workshop.timing_s(8)


def test_the_model_as_it_is_is_tried_in_each_precision_before_others(source: Path, tmp_path: Path) -> None:
    """Of a precision that nothing is known of, an estimate would have another's speed."""
    precisions = [["fuse", {"quantize": {"samples": 64}}], ["fuse"]]
    space = {"layers": [2, 1], "vocabulary": [False], "flops": [0.0, 0.5], "precisions": precisions}
    recipe = copied(source, "precisions", search={**QUICK, "trials": 1, "space": space})
    _, _, loop = parts(recipe, tmp_path)
    reference = loop.begin()
    loop.run()
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    tried = [Candidate.of(line["candidate"]) for line in lines if line.get("kind") in {"score", "trial"}]
    assert tried == [reference.candidate, replace(reference.candidate, graph=json.dumps(["fuse"]))]


def test_what_was_left_behind_has_its_turn_when_there_is_nothing_new(source: Path, tmp_path: Path) -> None:
    space = {"layers": [2, 1], "flops": [0.0, 0.3, 0.5], "vocabulary": [False], "precisions": [["fuse"]]}
    recipe = copied(source, "behind", passes=[{"prune": PRUNE}], search={**QUICK, "proposals": 4, "space": space})
    _, _, loop = parts(recipe, tmp_path)
    loop.begin()
    loop.run()
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    of_kind = {kind: [line["candidate"] for line in lines if line["kind"] == kind] for kind in ("trial", "score")}
    assert len(of_kind["trial"]) >= 2
    assert all(candidate in of_kind["score"] for candidate in of_kind["trial"])


def test_a_miss_by_much_is_relaxed_by_as_much(source: Path, tmp_path: Path) -> None:
    shares = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    space = {**ONE_LAYER, "layers": [2], "flops": shares}
    recipe = copied(source, "relaxed", passes=[{"prune": PRUNE}], search={**QUICK, "space": space})
    of, _, loop = parts(recipe, tmp_path)
    material = Workload.load(recipes.load(recipe), Progress(shown=False)).material(work=tmp_path)
    estimator = Estimator(material.original, material, samples=40, length=32)
    reference = loop.begin()
    loop.floor = reference.score - 0.01
    at = {share: replace(of.reference, flops=share) for share in shares}
    expected = {share: estimator(candidate).loss for share, candidate in at.items()}  # type: ignore[union-attr]

    def relaxed(lost: float) -> float:
        score = reference.score - lost
        stages = {"": reference.score, "prune": score, "graph": score}
        found = loop.relaxed(replace(reference, candidate=at[0.5], score=score, stages=stages))
        assert found is not None
        return found.flops

    # By a little: the next step. By much: the first whose estimate, scaled to what was lost, is near the limit.
    assert relaxed(0.011) == 0.4
    by_much = relaxed(0.3)
    near = [share for share in shares[1:] if 0.3 * expected[share] / expected[0.5] <= 3 * 0.01]
    assert by_much == max(near, default=0.0) < 0.4


def test_what_the_gate_blames_is_relaxed(source: Path, tmp_path: Path) -> None:
    """On the examples of the search nothing was lost but by the precision; on the gate's it is another pass."""
    precisions = [["fuse", {"quantize": {"samples": 64}}], ["fuse"]]
    space = {"layers": [2], "flops": [0.0, 0.5], "vocabulary": [False], "precisions": precisions}
    recipe = copied(source, "blamed", passes=[{"prune": PRUNE}, {"distill": DISTILL}], search={**QUICK, "space": space})
    of, _, loop = parts(recipe, tmp_path)
    reference = loop.begin()
    candidate = of.trained(replace(of.reference, flops=0.5), first=True)
    score = reference.score
    stages = {"": score, "prune": score - 0.1, "distill": score, "graph": score - 0.01}
    trial = replace(reference, candidate=candidate, stages=stages)
    of_precision = loop.relaxed(trial)
    assert of_precision is not None
    assert of_precision == replace(candidate, excluded=of_precision.excluded)
    assert len(of_precision.excluded) == 1
    assert loop.relaxed(trial, blamed="quantize") == of_precision
    for blamed in ("prune", "distill"):
        longer = loop.relaxed(trial, blamed=blamed)
        assert longer is not None
        assert longer == replace(candidate, epochs=longer.epochs)
        assert longer.epochs > candidate.epochs


def test_a_build_that_the_gate_refuses_says_by_which_pass(source: Path, tmp_path: Path) -> None:
    gate = {"dataset": "test.jsonl", "metric": "ndcg@10", "keep": 0.1, "agreement": 1.0, "confidence": "point"}
    recipe = copied(source, "refused", passes=[{"prune": PRUNE}], gate=gate)
    of, workshop, _ = parts(recipe, tmp_path)
    found = workshop.built(replace(of.reference, ffn=0.5, heads=0.5, flops=0.0))
    assert found["stage"] == "prune"
    assert "first missed after prune" in found["gate"]


def test_what_comes_before_the_first_candidate_is_spent(source: Path, tmp_path: Path) -> None:
    space, *_ = parts(source, tmp_path)
    journal = Journal(tmp_path / "other.jsonl")
    budget = Budget(10, space, journal, began=time.monotonic() - 240, training_s=lambda _: 0.0)
    assert budget.spent_s >= 240
    assert budget.left_s(3) <= 360
    journal.put("known", {}, {"seconds": 120.0})
    kept = Journal(tmp_path / "other.jsonl")
    again = Budget(10, space, kept, began=time.monotonic(), training_s=lambda _: 0.0)
    kept.get("known")
    assert again.spent_s >= 120


def test_builds_of_the_end_are_foreseen_by_the_first_and_by_what_passes_take(source: Path, tmp_path: Path) -> None:
    space, *_ = parts(source, tmp_path)
    journal = Journal(tmp_path / "other.jsonl")
    budget = Budget(10, space, journal, began=time.monotonic(), training_s=lambda _: 0.0)
    reference = Trial(space.reference, 0.9, {"": 0.9}, 10, throughput=1.0, latency=1.0, seconds=9.0)
    (pruned,) = space.all()
    budget.learn(reference)
    for seconds in (39.0, 41.0):
        budget.learn(replace(reference, candidate=pruned, seconds=seconds))
    reserved = budget.left_s(0) - budget.left_s(2)
    assert reserved == pytest.approx(2 * 39.0, abs=10.0)
    budget.learn_build(space.reference, 20.0)
    budget.learn_build(pruned, 500.0)
    # A pruned one takes 30 s longer than the model as it is.
    assert budget.left_s(0) - budget.left_s(2) == pytest.approx(2 * 50.0, abs=10.0)


def test_what_is_built_at_once_is_not_built_again(source: Path, tmp_path: Path) -> None:
    *_, loop = parts(source, tmp_path)
    reference = loop.begin()
    lines = (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in lines[:2]] == ["score", "build"]
    assert [*loop.passed] == [reference.candidate.key]
    loop.gate_front()
    assert (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines() == lines


def kinds(folder: Path) -> list[str]:
    """Returns what was computed, in its order."""
    return [json.loads(line)["kind"] for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]


def used_up(space: Space, folder: Path) -> Budget:
    """Returns a budget of which nothing is left."""
    journal = Journal(folder / "other.jsonl")
    return Budget(10, space, journal, began=time.monotonic() - 3600, training_s=lambda _: 0.0)


def test_no_build_is_begun_when_the_time_is_over(source: Path, tmp_path: Path) -> None:
    space, _, loop = parts(copied(source, "over", passes=[{"prune": PRUNE}]), tmp_path)
    reference = loop.begin()
    smaller = replace(space.reference, layers=1)
    loop.settle(smaller)
    assert smaller in [trial.candidate for trial in loop.front()]
    before = kinds(tmp_path)
    loop.budget = used_up(space, tmp_path)
    assert loop.gate_front() == [reference]
    assert kinds(tmp_path) == before
    assert loop.unbuilt == {smaller.key}
    assert re.fullmatch(
        r"not built: takes about [\d.]+ min, 0\.00 are left of the budget", loop.refused[space.label(smaller)]
    )
    # Where nothing has passed, one build is begun in any case: that was foreseen.
    loop.passed.clear()
    loop.unbuilt.clear()
    loop.gate_front()
    assert kinds(tmp_path) == [*before, "build"]


def test_no_training_is_begun_when_the_gate_has_refused_all_and_the_time_is_over(source: Path, tmp_path: Path) -> None:
    space, _, loop = parts(source, tmp_path)
    reference = loop.begin()
    before = kinds(tmp_path)
    loop.budget = used_up(space, tmp_path)
    loop.full.clear()
    (candidate,) = space.all()
    loop.settle(space.trained(candidate, first=True))
    assert (loop.full, kinds(tmp_path)) == ({}, before)
    # The model as it is, by which a search begins, is judged however little there is.
    loop.settle(reference.candidate)
    assert [*loop.full] == [reference.candidate.key]


@pytest.mark.parametrize("quantised", [{"samples": 64}, {"samples": 64, "keep": 0.5}])
def test_layer_that_a_precision_disturbs_the_most_is_found(
    source: Path, tmp_path: Path, quantised: dict[str, Any]
) -> None:
    graph = ["fuse", {"quantize": quantised}]
    recipe = copied(source, f"sensitive-{len(quantised)}", graph=graph, search={**QUICK, "space": {"layers": [2]}})
    space, workshop, _ = parts(recipe, tmp_path)
    layer = workshop.most_sensitive(space.reference)
    assert layer in {0, 1}
    # Half of the layers at most are left out.
    assert workshop.most_sensitive(replace(space.reference, excluded=(layer,))) is None
