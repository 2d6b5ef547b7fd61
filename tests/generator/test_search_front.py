"""What a search is made of: fronts, costs of stages, candidates and their recipes, proposals, and what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import change, write_training
from tritonpress_generator import recipe as recipes
from tritonpress_generator.errors import InputError
from tritonpress_generator.search import front
from tritonpress_generator.search.sampler import propose
from tritonpress_generator.search.settings import Config
from tritonpress_generator.search.space import Candidate, Space, recipe_at
from tritonpress_generator.search.trials import Trial, costs

POINTS = st.integers(1, 3).flatmap(
    lambda axes: st.lists(st.tuples(*[st.integers(0, 5).map(float)] * axes), min_size=1, max_size=14)
)


@given(POINTS)
def test_front_is_what_nothing_dominates_and_dominates_the_rest(points: list[tuple[float, ...]]) -> None:
    kept = front.front(points)
    on_it = [points[i] for i in kept]
    assert len(set(on_it)) == len(on_it)
    assert not any(front.dominates(one, other) for one in on_it for other in on_it)
    for point in points:
        assert point in on_it or any(front.dominates(one, point) for one in on_it)


@given(POINTS, st.randoms(use_true_random=False))
def test_front_has_the_same_points_in_any_order(points: list[tuple[float, ...]], random: Any) -> None:
    before = {points[i] for i in front.front(points)}
    random.shuffle(points)
    assert {points[i] for i in front.front(points)} == before


@given(POINTS, st.integers(0, 16))
def test_best_are_as_many_as_wanted_and_none_is_passed_over_for_what_it_dominates(
    points: list[tuple[float, ...]], count: int
) -> None:
    chosen = front.best(points, count)
    assert len(chosen) == min(count, len(points))
    assert chosen == sorted(set(chosen))
    left = [points[i] for i in range(len(points)) if i not in chosen]
    assert not any(front.dominates(one, points[i]) for one in left for i in chosen)


@given(st.floats(1e-3, 1e3), st.floats(1.03, 10))
def test_times_within_noise_are_mostly_equal_and_others_are_not(figure: float, times: float) -> None:
    assert abs(front.steps(figure * 1.005) - front.steps(figure)) <= 1
    assert front.steps(figure * times) > front.steps(figure)


@pytest.mark.parametrize(
    ("stages", "order"),
    [
        ({"": 0.9, "crop": 0.7, "prune": 0.65, "graph": 0.64}, ["crop", "prune", "graph"]),
        ({"": 0.9, "crop": 0.89, "prune": 0.88, "graph": 0.7}, ["graph", "crop", "prune"]),
        # What is not regained counts against the distillation, and its share against what it was to mend.
        ({"": 0.9, "crop": 0.5, "prune": 0.4, "distill": 0.8, "graph": 0.79}, ["distill", "crop", "prune", "graph"]),
        ({"": 0.9, "prune": 0.4, "distill": 0.89, "graph": 0.7}, ["graph", "distill", "prune"]),
        ({"": 0.9, "prune": 0.4, "distill": 0.8, "graph": 0.8}, ["distill", "prune", "graph"]),
    ],
)
def test_what_cost_the_most_comes_first(stages: dict[str, float], order: list[str]) -> None:
    assert [*costs(stages)] == order


@pytest.mark.parametrize(
    ("objective", "on_front"),
    [("throughput", ["together", "alone", "small"]), ("latency", ["alone", "small"]), ("size", ["alone", "small"])],
)
def test_front_is_of_the_metric_the_latency_and_the_size_and_of_the_objective(
    objective: str, on_front: list[str]
) -> None:
    figures = {
        "together": {"throughput": 2.0, "latency": 1.0},
        "alone": {"throughput": 1.5, "latency": 0.5},
        "small": {"size_bytes": 50, "throughput": 1.0, "latency": 1.0},
        "worse": {"throughput": 1.2, "latency": 1.2},
    }
    candidate = Candidate(2, 0.0, 0.0, 0.0, False, "[]", '"exact"')
    same: dict[str, Any] = {"score": 0.9, "stages": {}, "size_bytes": 100, "seconds": 1.0}
    points = [Trial(candidate, **{**same, **own}).point(objective) for own in figures.values()]
    assert [[*figures][i] for i in front.front(points)] == on_front


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_costs_add_up_to_what_was_lost(scores: list[float]) -> None:
    stages = dict(zip(["", "crop", "prune", "positions", "graph"], scores, strict=False))
    found = costs(stages)
    assert sum(found.values()) == pytest.approx(scores[0] - scores[-1], abs=1e-9)
    assert [*found.values()] == sorted(found.values(), reverse=True)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Space:
    path = write_training(tmp_path_factory.mktemp("space"), "recommendation")
    passes = [
        {"crop": {"layers": 2, "samples": 16, "vocabulary": {"min_count": 2}}},
        {"prune": {"ffn": 0.1, "round_to": 8}},
        {"distill": {"epochs": 4, "batch_size": 4}},
    ]
    change(path, passes=passes, graph=["fuse", {"quantize": {"samples": 64, "exclude": ["*layer.0/*"]}}])
    return space_of(path, {"heads": [0.5, 0.0], "ffn": [0.0, 0.25], "layers": [2, 4, 3]})


def space_of(path: Path, wanted: dict[str, Any], kinds: tuple[str, ...] = ("heads", "ffn")) -> Space:
    config = recipes.load(change(path, search={"space": wanted})).search
    assert isinstance(config, Config)
    return Space.load(recipes.load(path), config, depth=4, kinds=kinds, lengths="exact")


CANDIDATES = st.fixed_dictionaries(
    {"at": st.integers(0, 10**6), "epochs": st.sampled_from([0.0, 1.0, 8.0]), "excluded": st.sets(st.integers(0, 1))}
)


def drawn(space: Space, places: dict[str, Any]) -> Candidate:
    every = [*space.all()]
    candidate = every[places["at"] % len(every)]
    return replace(candidate, epochs=places["epochs"], excluded=tuple(sorted(places["excluded"])))


@settings(deadline=None)
@given(CANDIDATES)
def test_candidate_is_a_recipe_that_loads(space: Space, places: dict[str, Any]) -> None:
    candidate = drawn(space, places)
    written = space.written(candidate, lambda layer: f"*layer.{layer}/*")
    own = space.recipe
    loaded = recipe_at(own.path, yaml.safe_load(yaml.safe_dump(written)), folder=own.folder)
    by_word = {stage.word: stage.config for stage in loaded.passes}
    assert [stage.word for stage in loaded.passes] == [word for word in ("crop", "prune", "distill") if word in by_word]
    assert ("distill" in by_word) == bool(candidate.epochs)
    assert ("prune" in by_word) == bool(candidate.heads or candidate.ffn)
    assert loaded.search is None
    if "crop" in by_word:
        assert by_word["crop"].layers == (candidate.layers if candidate.layers < 4 else None)
        assert by_word["crop"].samples == 16
        assert (by_word["crop"].vocabulary is not None) == candidate.vocabulary
    if "prune" in by_word:
        assert (by_word["prune"].heads, by_word["prune"].ffn) == (candidate.heads, candidate.ffn)
        assert by_word["prune"].round_to == 8
    if "distill" in by_word:
        assert (by_word["distill"].epochs, by_word["distill"].batch_size) == (candidate.epochs, 4)
    excluded = [stage.config.exclude for stage in loaded.graph if stage.word == "quantize"]
    assert all(names == ["*layer.0/*", *(f"*layer.{layer}/*" for layer in candidate.excluded)] for names in excluded)
    again = Candidate.of(json.loads(json.dumps(vars(candidate))))
    assert (again, again.key) == (candidate, candidate.key)


def test_different_candidates_have_different_keys(space: Space) -> None:
    every = [*space.all()]
    assert len(every) == 3 * 2 * 2 * 2 * 2
    assert len({candidate.key for candidate in every}) == len({*every}) == len(every)


def test_different_candidates_are_told_apart_by_their_labels(tmp_path: Path) -> None:
    path = write_training(tmp_path, "recommendation")
    precisions = [
        ["fuse", {"quantize": {"calibration": "min_max"}}],
        ["fuse", {"quantize": {"calibration": "entropy", "samples": 64}}],
        ["fuse", "quantize"],
        ["fuse"],
    ]
    several = {"precisions": precisions, "lengths": ["exact", "ragged", [16, 48]], "flops": [0.3, 0.302]}
    every = space_of(path, {"layers": [4], "vocabulary": [False], **several})
    labels = [every.label(candidate) for candidate in every.all()]
    assert len({*labels}) == len(labels) == 4 * 3 * 2
    assert "4 layers, flops -30%, fuse + quantize (calibration min_max), lengths [16, 48]" in labels
    few = space_of(path, {"layers": [4], "precisions": precisions[1:3:2]})
    assert few.label(few.reference) == "4 layers, fuse + quantize"


@settings(deadline=None)
@given(CANDIDATES, st.lists(st.sampled_from(["crop", "prune", "distill", "graph"]), max_size=30))
def test_milder_candidates_end(space: Space, places: dict[str, Any], stages: list[str]) -> None:
    candidate = drawn(space, places)
    seen = {candidate}
    for stage in stages:
        milder = space.milder(candidate, stage)
        if milder is None:
            continue
        assert milder not in seen
        assert milder.layers >= candidate.layers
        assert (milder.heads, milder.ffn, milder.vocabulary) <= (candidate.heads, candidate.ffn, candidate.vocabulary)
        seen.add(milder)
        candidate = milder
    for stage in ("crop", "prune", "distill", "graph") * 12:
        candidate = space.milder(candidate, stage) or candidate
    assert (candidate.layers, candidate.heads, candidate.ffn, candidate.vocabulary) == (4, 0.0, 0.0, False)
    assert candidate.graph == '["fuse"]'


@settings(deadline=None, max_examples=1)
@given(st.integers(0, 1000), st.integers(3, 9))
def test_proposals_are_new_depend_on_what_is_known_alone_and_end_with_the_space(
    space: Space, seed: int, count: int
) -> None:
    seen: set[str] = set()
    known: list[tuple[Candidate, float, float]] = []
    while True:
        found = propose(space, known, seen, count, seed=seed + len(known))
        assert found == propose(space, known, seen, count, seed=seed + len(known))
        assert not seen & {candidate.key for candidate in found}
        assert len({candidate.key for candidate in found}) == len(found)
        if not found:
            break
        seen |= {candidate.key for candidate in found}
        known += [(candidate, 1 - candidate.ffn, float(candidate.layers)) for candidate in found]
    assert seen == {candidate.key for candidate in space.all()}


def test_proposals_learn_from_what_is_known(space: Space) -> None:
    # The metric is the same everywhere, and fewer layers and no vocabulary cost less.
    every = [*space.all()]
    known = [(one, 1.0, one.layers + one.vocabulary) for one in every[::3]]
    found = propose(space, known, [one.key for one, *_ in known], 6, seed=0)
    mean = sum(one.layers + one.vocabulary for one in found) / len(found)
    assert mean < sum(one.layers + one.vocabulary for one in every) / len(every)


def test_every_seed_of_a_recipe_proposes(space: Space) -> None:
    for seed in (429_197, (1 << 31) - 1):
        assert len(propose(space, [], set(), 3, seed=seed * 10_007 + 1)) == 3


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"budget": 3}, "search.budget: unknown key; allowed: objective, budget_minutes"),
        ({"objective": "speed"}, "search.objective: input should be 'throughput', 'latency' or 'size', got 'speed'"),
        ({"budget_minutes": 0}, "search.budget_minutes: input should be greater than 0, got 0"),
        ({"budget_minutes": float("nan")}, "search.budget_minutes: input should be a finite number"),
        ({"space": {"layer": [1]}}, "search.space.layer: unknown key; allowed: layers, flops"),
        ({"space": {"flops": [0.2], "ffn": [0.5]}}, "search.space: give flops, or heads and ffn"),
        ({"space": {"ffn": [1.0]}}, "search.space.ffn.0: input should be less than 1"),
        ({"space": {"layers": []}}, "search.space.layers: list should have at least 1 item"),
    ],
)
def test_settings_are_checked(tmp_path: Path, search: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        recipes.load(change(write_training(tmp_path, "recommendation"), search=search))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("wanted", "kinds", "message"),
    [
        ({"layers": [5]}, ("heads", "ffn"), r"search.space.layers must be at most 4 \(the model's\), got 5"),
        ({"flops": [0.2]}, ("ffn",), "heads of this model cannot be pruned; give ffn in place of flops"),
        ({"precisions": [["fuse"], ["fuze"]]}, ("heads", "ffn"), r"precisions\[1\]\[0\]: unknown word 'fuze'"),
        (
            {"precisions": [[{"quantize": {"sample": 1}}]]},
            ("heads", "ffn"),
            r"precisions\[0\]\[0\].quantize: sample: unk",
        ),
        ({"lengths": ["raged"]}, ("heads", "ffn"), "unknown word 'raged'"),
    ],
)
def test_space_that_the_model_has_not_is_refused(
    tmp_path: Path, wanted: dict[str, Any], kinds: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        space_of(write_training(tmp_path, "recommendation"), wanted, kinds)


def test_pass_that_is_not_searched_is_refused(tmp_path: Path) -> None:
    path = change(write_training(tmp_path, "recommendation"), passes=[{"sparsify": {"share": 0.5}}])
    with pytest.raises(InputError, match="passes: a search tries crop, prune, distill, got sparsify; leave it out"):
        space_of(path, {})


def test_several_passes_of_one_word_are_refused(tmp_path: Path) -> None:
    """They would become one, with the settings of all of them."""
    trained = {"distill": {"fake_quantize": 7, "epochs": 2, "dropout": 0.0}}
    passes = [{"prune": {"flops": 0.3}}, {"distill": {"epochs": 5}}, trained]
    path = change(write_training(tmp_path, "recommendation"), passes=passes)
    with pytest.raises(
        InputError,
        match="passes: a search makes its passes of one setting of each, got distill 2 times; leave all of them out",
    ):
        space_of(path, {})


def test_space_that_is_left_out_has_defaults(tmp_path: Path) -> None:
    path = change(write_training(tmp_path, "recommendation"), graph=["fuse", "quantize"])
    assert space_of(path, {}).dimensions == {
        "layers": (4, 3, 2),
        "heads": (0.0,),
        "ffn": (0.0,),
        "flops": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
        "vocabulary": (False, True),
        "graph": ('["fuse", "quantize"]', '["fuse"]'),
        "lengths": ('"exact"',),
    }
    assert space_of(path, {}, ("ffn",)).dimensions["ffn"] == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
