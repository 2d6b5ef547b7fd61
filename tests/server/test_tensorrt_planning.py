"""What the `tensorrt` backend plans from shapes alone: for any profiles, graphs and requests."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from plan_shapes import Graph, Planner, Profile, bytes_needed

Shapes = dict[str, tuple[int, ...]]


@st.composite
def bounds(draw: st.DrawFn, least: int, most: int) -> tuple[int, int, int]:
    low, opt, high = sorted(draw(st.tuples(*[st.integers(least, most)] * 3)))
    return low, opt, high


@st.composite
def planners(draw: st.DrawFn) -> Planner:
    """Two inputs of (batch, length), of one batch and one length or of a second length that is fixed."""
    profiles = []
    for number in range(draw(st.integers(1, 3))):
        batch, length, fixed = draw(bounds(1, 8)), draw(bounds(1, 3)), draw(st.booleans())
        sides = [
            {"ids": (batch[side], length[side]), "mask": (batch[side], 5 if fixed else length[side])}
            for side in range(3)
        ]
        profiles.append(Profile(number, *sides))
    graphs = []
    for _ in range(draw(st.integers(0, 6))):
        profile = draw(st.sampled_from(profiles))
        batch = draw(st.integers(profile.least["ids"][0], profile.most["ids"][0]))
        length = draw(st.integers(profile.least["ids"][1], profile.most["ids"][1]))
        fixed = profile.least["mask"][1] == profile.most["mask"][1] == 5
        shapes = {"ids": (batch, length), "mask": (batch, 5 if fixed else length)}
        graphs.append(Graph(profile.number, shapes, draw(st.none() | st.integers(1, batch))))
    return Planner(profiles, graphs, draw(st.booleans()))


@st.composite
def requests(draw: st.DrawFn) -> list[Shapes]:
    found = []
    for _ in range(draw(st.integers(1, 6))):
        batch, length = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        found.append({"ids": (batch, length), "mask": (batch, draw(st.sampled_from([length, 5])))})
    return found


@given(planners(), requests())
def test_every_request_is_answered_once_or_refused_for_its_own_shapes(planner: Planner, asked: list[Shapes]) -> None:
    runs, refused = planner.plan(asked)
    answered = [place for run in runs for place in run.requests]
    assert sorted([*answered, *refused]) == list(range(len(asked)))
    for place, shapes in enumerate(asked):
        held = any(profile.why_not(shapes) is None for profile in planner.profiles)
        assert (place in refused) == (not held)
        alone = planner.plan([shapes])[1]
        assert alone == ({0: refused[place]} if place in refused else {})
    assert all("\n" not in reason and "must have" in reason for reason in refused.values())


@given(planners(), requests())
def test_runs_are_within_their_profile_and_graph(planner: Planner, asked: list[Shapes]) -> None:
    for run in planner.plan(asked)[0]:
        (profile,) = [profile for profile in planner.profiles if profile.number == run.profile]
        assert profile.why_not(run.shapes) is None or run.graph is not None
        own = [asked[place] for place in run.requests]
        rows = sum(shapes["ids"][0] for shapes in own)
        joined = {name: (rows, *own[0][name][1:]) for name in own[0]} if planner.batches else own[0]
        holding = [one for one in planner.profiles if one.why_not(joined) is None]
        assert profile.distance(joined) == min(one.distance(joined) for one in holding)
        own_graphs = [graph for graph in planner.graphs if graph.profile == run.profile]
        taking = [one for one in own_graphs if (one.takes(joined) if planner.batches else one.shapes == joined)]
        assert (run.graph is None) == (not taking)
        if run.graph is None:
            assert run.shapes == joined
            continue
        graph = planner.graphs[run.graph]
        assert run.shapes == graph.shapes
        assert graph.profile == run.profile
        assert graph.shapes["ids"][0] == min(one.shapes["ids"][0] for one in taking)
        if run.shapes != joined:
            assert planner.batches
            assert graph.least_batch is not None
            assert graph.least_batch <= rows < graph.shapes["ids"][0]
            assert {name: shape[1:] for name, shape in run.shapes.items()} == {
                name: shape[1:] for name, shape in joined.items()
            }


@given(planners(), requests())
def test_rows_of_a_run_follow_each_other(planner: Planner, asked: list[Shapes]) -> None:
    for run in planner.plan(asked)[0]:
        assert list(run.requests) == sorted(run.requests)
        if not planner.batches:
            assert run.rows == (...,)
            continue
        ends = list(itertools.accumulate(asked[place]["ids"][0] for place in run.requests))
        assert [(rows.start, rows.stop) for rows in run.rows] == list(zip([0, *ends], ends, strict=False))
        assert ends[-1] <= run.shapes["ids"][0]


@given(planners(), requests())
def test_requests_of_one_shape_share_a_run_where_a_profile_holds_them(planner: Planner, asked: list[Shapes]) -> None:
    runs, _ = planner.plan(asked)
    if not planner.batches:
        assert all(len(run.requests) == 1 for run in runs)
        return
    for one, other in itertools.pairwise(runs):
        first, second = asked[one.requests[0]], asked[other.requests[0]]
        if any(first[name][1:] != second[name][1:] for name in first):
            continue
        # The next request would have been one too many.
        rows = one.rows[-1].stop + second["ids"][0]
        together = {name: (rows, *shape[1:]) for name, shape in first.items()}
        assert all(profile.why_not(together) for profile in planner.profiles)


@given(planners())
def test_buffers_hold_every_shape_of_every_profile(planner: Planner) -> None:
    sizes = bytes_needed(planner.profiles, {"ids": 4, "mask": 1})
    for name, item in (("ids", 4), ("mask", 1)):
        products = [item * profile.most[name][0] * profile.most[name][1] for profile in planner.profiles]
        assert sizes[name] == max(products)
    for graph in planner.graphs:
        assert graph.shapes["ids"][0] * graph.shapes["ids"][1] * 4 <= sizes["ids"]


def profile(number: int, length: int, batch: int = 8) -> Profile:
    return Profile(number, *({"x": (size, length)} for size in (1, batch, batch)))


def test_refusal_says_what_the_profiles_hold() -> None:
    planner = Planner([profile(0, 4)], [], True)
    assert planner.plan([{"x": (9, 4)}])[1] == {
        0: "input 'x' must have from 1 to 8 elements in dimension 0 by optimization profile 0, got 9 of shape [9, 4]"
    }
    several = Planner([profile(0, 4), profile(1, 6)], [], True)
    (reason,) = several.plan([{"x": (1, 5)}])[1].values()
    assert reason.startswith("no optimization profile among 0, 1 holds x [1, 5]; the last: input 'x' must have from 6")
    assert "must have 2 dimensions" in planner.plan([{"x": (1, 4, 1)}])[1][0]


def test_nearest_profile_and_the_first_of_equals_are_taken() -> None:
    near: Any = [profile(2, 4, batch=8), profile(0, 4, batch=8), profile(1, 4, batch=4)]
    planner = Planner(near, [], True)
    assert [planner.plan([{"x": (rows, 4)}])[0][0].profile for rows in (1, 4, 8)] == [1, 1, 0]


def test_only_graphs_with_a_lower_bound_are_padded_to() -> None:
    exact, padded = Graph(0, {"x": (4, 4)}), Graph(0, {"x": (8, 4)}, 5)
    planner = Planner([profile(0, 4)], [padded, exact], True)
    chosen = {rows: planner.plan([{"x": (rows, 4)}])[0][0] for rows in range(1, 9)}
    assert {rows: run.graph for rows, run in chosen.items()} == {
        1: None, 2: None, 3: None, 4: 1, 5: 0, 6: 0, 7: 0, 8: 0
    }  # fmt: skip
    assert chosen[6].shapes == {"x": (8, 4)}
    assert chosen[6].rows == (slice(0, 6),)
