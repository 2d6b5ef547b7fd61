"""The gate passes, fails, or says how many examples are missing; each of them is shown."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_sources import LABELS, items, write_checkpoint, write_jsonl, write_recipe, write_task
from tiny_training import change
from tritonpress_generator import cli, gate, repository
from tritonpress_generator import recipe as recipes
from tritonpress_generator.errors import GateError, InputError, UndecidedError
from tritonpress_generator.progress import Progress
from tritonpress_generator.recipe_text import GateConfig
from tritonpress_generator.scores import RESAMPLES, Scores, means
from tritonpress_generator.tasks import classification, question_answering, recommendation
from tritonpress_generator.workload import Workload

POINT = GateConfig(dataset="d", metric="accuracy", keep=0.99, confidence="point")
SURE = POINT.model_copy(update={"confidence": 0.95})


def scores(right: NDArray[np.bool_], other: NDArray[np.bool_] | None = None) -> Scores:
    values = {"accuracy": right.astype(float)}
    if other is not None:
        values["agreement"] = (right == other).astype(float)
    return Scores(means(values), len(right))


def answered(count: int, wrong: int) -> NDArray[np.bool_]:
    return np.arange(count) >= wrong


def named(error: UndecidedError) -> int:
    """Returns how many more examples it says."""
    found = re.search(r"about ([\d,]+) more", str(error))
    assert found is not None
    return int(found.group(1).replace(",", ""))


def test_point_estimate_passes_at_the_limit_and_fails_below() -> None:
    verdict = gate.check(POINT, scores(answered(200, 100)), scores(answered(200, 101)))
    assert (verdict.limit, verdict.served) == (pytest.approx(0.495), 0.495)
    assert (verdict.confidence, verdict.kept) == (None, None)
    with pytest.raises(GateError, match=r"accuracy must stay at or above 0\.4950 .* got 0\.4900, 2\.00 % less"):
        gate.check(POINT, scores(answered(200, 100)), scores(answered(200, 102)))


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan])
@pytest.mark.parametrize("config", [POINT, SURE])
def test_baseline_that_is_not_above_0_is_refused(config: GateConfig, value: float) -> None:
    nothing = Scores(lambda rows: {"accuracy": value}, 10)
    with pytest.raises(InputError, match=r"accuracy of the FP32 checkpoint must be above 0 on d, is .*; check the"):
        gate.check(config, nothing, nothing)


@pytest.mark.parametrize("config", [POINT, SURE])
def test_what_is_no_number_fails(config: GateConfig) -> None:
    nothing = Scores(lambda rows: {"accuracy": math.nan}, 10)
    with pytest.raises(GateError, match="got nan"):
        gate.check(config, scores(answered(10, 1)), nothing)


@pytest.mark.parametrize(
    ("keep", "confidence", "fewest"), [(0.99, 0.95, 368), (0.9, 0.95, 36), (0.99, 0.9, 299), (0.9, 0.999, 73)]
)
def test_the_same_answers_pass_if_a_model_that_keeps_less_would_hardly_give_them(
    keep: float, confidence: float, fewest: int
) -> None:
    """With the chance keep^n not one of n is lost, though `keep` is the share that is kept."""
    assert fewest == math.ceil(math.log((1 - confidence) / 2) / math.log(keep))
    config = POINT.model_copy(update={"keep": keep, "confidence": confidence})
    low, high = gate.check(config, *[scores(answered(fewest, 0))] * 2).kept or (0, 0)
    assert low == pytest.approx(((1 - confidence) / 2) ** (1 / fewest), abs=1e-12)
    assert low < 1 < high
    for examples in (1, fewest // 3, fewest - 1):
        same = scores(answered(examples, 0))
        with pytest.raises(UndecidedError) as caught:
            gate.check(config, same, same)
        # By how many are needed where a loss weighs the same among all of them, which is a little more.
        assert fewest <= examples + named(caught.value) <= fewest * 1.1


@pytest.mark.parametrize(
    ("changes", "fewest"),
    [({}, 368), ({"keep": 0.9}, 36), ({"confidence": 0.9}, 299), ({"keep": 0.9, "agreement": 0.99}, 368)],
)
def test_examples_by_which_the_same_answers_do_not_pass_are_too_few_for_a_search(
    changes: dict[str, float], fewest: int
) -> None:
    config = SURE.model_copy(update=changes)
    for examples in (fewest - 1, fewest):
        right = answered(examples, 0)
        same = scores(right, right)
        if examples < fewest:
            with pytest.raises(InputError, match=f"at least {fewest} examples for a search.*has {examples}; add"):
                gate.check_examples(config, examples)
            with pytest.raises(UndecidedError):
                gate.check(config, same, same)
        else:
            gate.check_examples(config, examples)
            gate.check(config, same, same)
    gate.check_examples(config.model_copy(update={"confidence": "point"}), 1)


def test_the_same_answers_say_less_where_the_baseline_is_seldom_right() -> None:
    """Of those that it has wrong, none can be lost: where it has half of them right, twice as many are needed."""
    same = scores(answered(720, 360))
    with pytest.raises(UndecidedError, match=r"about [1-9]\d more are needed"):
        gate.check(SURE, same, same)
    same = scores(answered(760, 380))
    gate.check(SURE, same, same)


def test_the_same_answers_are_not_certain_to_keep_all() -> None:
    right = answered(3000, 0)
    same = scores(right, right)
    for changed in ({"keep": 1.0}, {"keep": 0.5, "agreement": 1.0}):
        with pytest.raises(UndecidedError, match="no number of examples is likely to decide"):
            gate.check(SURE.model_copy(update=changed), same, same)


@pytest.mark.parametrize("most", [1.0, 100.0])
def test_metric_in_percent_is_as_certain_as_its_share(most: float) -> None:
    def of(wrong: int) -> Scores:
        return Scores(means({"accuracy": most * answered(500, wrong)}), 500, most)

    assert gate.interval("accuracy", of(50), of(51), 0.95) == pytest.approx(
        gate.interval("accuracy", scores(answered(500, 50)), scores(answered(500, 51)), 0.95), abs=1e-9
    )


@pytest.mark.parametrize("examples", [30, 100, 300, 500, 1000])
@pytest.mark.parametrize("agreement", [False, True])
def test_model_that_keeps_less_than_agreed_seldom_passes(examples: int, agreement: bool) -> None:
    """Of whole losses, at their binomial chance; a plain bootstrap passes 74 % of them at 30 examples, 7 % at 1000."""
    right = answered(examples, 0)
    before = scores(right, right)
    config = SURE.model_copy(update={"keep": 0.5, "agreement": 0.99} if agreement else {})

    def passes(lost: int) -> bool:
        try:
            gate.check(config, before, scores(answered(examples, lost), right))
        except GateError:
            return False
        return True

    lost = np.arange(8)
    passed = np.array([passes(count) for count in lost])
    assert not passed[-1]
    for kept, most in ((0.99, 0.04), (0.985, 0.01)):
        chance = [math.comb(examples, k) * (1 - kept) ** k * kept ** (examples - k) for k in lost.tolist()]
        assert float(np.array(chance)[passed].sum()) <= most


def test_few_examples_pass_by_the_point_estimate_and_are_undecided_with_an_interval() -> None:
    before, after = scores(answered(250, 25)), scores(answered(250, 27))  # 99.1 % kept
    gate.check(POINT, before, after)
    with pytest.raises(UndecidedError) as caught:
        gate.check(SURE, before, after)
    assert caught.value.exit_status == 1
    text = str(caught.value)
    assert "undecided at 95% with 250 examples, about" in text
    assert "add examples" in text
    # With as many more as it says, of the same kind, it is decided, and with a tenth of them it is not.
    more = named(caught.value)
    for factor, decided in ((1.2, True), (0.1, False)):
        times = 1 + factor * more / 250
        counts = (round(250 * times), round(25 * times), round(27 * times))
        pair = scores(answered(counts[0], counts[1])), scores(answered(counts[0], counts[2]))
        if decided:
            low, high = gate.check(SURE, *pair).kept or (0, 0)
            assert 0.99 <= low < high < 1
        else:
            with pytest.raises(UndecidedError):
                gate.check(SURE, *pair)


def test_certain_loss_is_no_matter_of_more_examples() -> None:
    with pytest.raises(GateError, match="certain at 95% with 1000 examples") as caught:
        gate.check(SURE, scores(answered(1000, 50)), scores(answered(1000, 100)))
    assert not isinstance(caught.value, UndecidedError)


def test_draws_are_paired() -> None:
    before, after = answered(400, 40), answered(400, 41)
    paired = gate.check(SURE.model_copy(update={"keep": 0.98}), scores(before), scores(after)).kept
    with pytest.raises(UndecidedError):
        # The same accuracies, but other examples are wrong.
        gate.check(SURE.model_copy(update={"keep": 0.98}), scores(before), scores(after[::-1]))
    assert paired is not None
    assert paired[0] > 0.98


@pytest.mark.parametrize("config", [POINT, SURE])
@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_agreement_has_a_floor_of_its_own(config: GateConfig, keep: float) -> None:
    """Of 0.99 the metric would be undecided, which more examples mend; they do not mend the agreement."""
    before = answered(1000, 500)
    other = ~before
    config = config.model_copy(update={"agreement": 0.9, "keep": keep})
    assert gate.check(config, scores(before, before), scores(before, before)).agreement == 1.0
    with pytest.raises(GateError, match=r"agreement with FP32's answers must stay at or above 0\.9, got 0\.0000"):
        gate.check(config, scores(before, before), scores(other, before))


@given(st.integers(1, 10_000), st.floats(0, 2), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_missing_examples_narrow_the_interval_to_the_margin(
    examples: int, share: float, scatter: float, other: float, unseen: float
) -> None:
    reach = math.hypot(scatter, unseen / examples)
    interval = (share - reach, share + other) if share > 0.9 else (share - other, share + reach)
    more, margin = gate.missing(share, 0.9, interval, examples, unseen), abs(share - 0.9)
    if more is None:
        assert margin <= (scatter + 1e-6) / 30
    else:
        assert more >= 1
        total = examples + more
        assert math.hypot(scatter * math.sqrt(examples / total), unseen / total) <= margin * (1 + 1e-6) + 1e-6


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=60), st.integers(0, 2**32 - 1))
def test_draws_are_of_the_metric_and_the_same_for_all(right: list[bool], seed: int) -> None:
    given_scores = scores(np.array(right))
    draws = given_scores.draws["accuracy"]
    assert draws.shape == (RESAMPLES,)
    assert np.array_equal(draws, scores(np.array(right)).draws["accuracy"])
    spread = math.sqrt(given_scores.metrics["accuracy"] * (1 - given_scores.metrics["accuracy"]) / len(right))
    assert abs(draws.mean() - given_scores.metrics["accuracy"]) <= 6 * spread / math.sqrt(RESAMPLES) + 1e-12


def as_bytes(rows: list[list[str]]) -> NDArray[np.object_]:
    return np.array([[value.encode() for value in row] for row in rows], np.object_)


def test_agreement_of_each_task() -> None:
    items = [{"ITEM_ID": as_bytes(rows)} for rows in ([["a", "b"], ["a", "b"]], [["b", "a"], ["a", "c"]])]
    assert recommendation.agreement(None, *items).tolist() == [1, 0.5]  # type: ignore[arg-type]
    spans = [{"ANSWER": as_bytes(rows)} for rows in ([["one two"], [""], ["x"]], [["one"], [""], [""]])]
    assert question_answering.agreement(None, *spans).tolist() == [pytest.approx(2 / 3), 1, 0]  # type: ignore[arg-type]
    labels = [
        {"LABEL": as_bytes([["no", "yes"], ["no", "yes"]]), "SCORE": np.array(score, np.float32)}
        for score in ([[0.9, 0.6], [0.9, 0.1]], [[0.9, 0.1], [0.3, 0.7]])
    ]
    for multi_label, expected in ((False, [1, 0]), (True, [0, 0])):
        data = classification.Data([], [], multi_label)
        assert classification.agreement(data, *labels).tolist() == expected


UNLABELLED = {
    "recommendation": ("queries.jsonl", '{"query": "a red lamp"}\n{"query": "a blue bowl"}\n'),
    "classification": ("texts.jsonl", '{"text": "a red lamp"}\n{"text": "a blue bowl"}\n'),
    "question_answering": (
        "questions.json",
        '{"data": [{"paragraphs": [{"context": "The lamp is red.", "qas": [{"id": "1", "question": "Which?"}]}]}]}',
    ),
}


@pytest.mark.parametrize("task", UNLABELLED)
def test_without_labels_agreement_is_the_metric(tmp_path: Path, task: str) -> None:
    name, text = UNLABELLED[task]
    gate_of = {"dataset": name, "metric": "agreement", "keep": 0.5, "confidence": "point"}
    if task == "recommendation":
        write_checkpoint(tmp_path / "checkpoint")
        write_jsonl(tmp_path / "catalogue.jsonl", items())
        recipe = write_recipe(tmp_path, gate=gate_of)
    else:
        # Two texts are too few to calibrate on.
        recipe = change(write_task(tmp_path, task), gate=gate_of, graph=["fuse"])
    (tmp_path / name).write_text(text)
    out = tmp_path / "out"
    assert cli.main(["build", str(recipe), "--out", str(out)]) == 0
    manifest = repository.read_manifest(out, recipes.load(recipe).name)
    assert manifest["gate"]["baseline"] == 1.0
    assert 0.5 <= manifest["gate"]["served"] <= 1.0
    assert all(set(stage["metrics"]) == {"agreement"} for stage in manifest["stages"])


def test_build_of_a_checkpoint_that_is_never_right_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_task(tmp_path, "classification")
    workload = Workload.load(recipes.load(recipe), Progress(shown=False))
    answers = workload.answers(workload.baseline)["LABEL"][:, 0]
    wrong = [next(label for label in LABELS if label != answer.decode()) for answer in answers]
    rows = [f"{text}\t{label}\n" for text, label in zip(workload.data.inputs["TEXT"], wrong, strict=True)]
    (tmp_path / "texts.tsv").write_text("".join(["text\tlabel\n", *rows]), encoding="utf-8")
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "gate: accuracy of the FP32 checkpoint must be above 0 on texts.tsv, is 0.0000; check the checkpoint" in said
    assert not (tmp_path / "out" / "classification").exists()
