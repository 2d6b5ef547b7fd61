"""Labelled texts, metrics, calibration, and what is made of logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonpress_generator import classification_metrics as measures
from tritonpress_generator import labelled_texts
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array
from tritonpress_generator.labelled_texts import LabelledText
from tritonpress_generator.steps.classification.postprocessor import Postprocessor
from tritonpress_generator.tasks.classification import best_temperature, indicators, scores

LOGITS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(2, 5)), elements=st.floats(-90, 90, width=32)
)


def one_hot(labels: list[int], count: int) -> Array:
    return np.arange(count) == np.array(labels)[:, None]


def test_metrics_of_a_worked_example() -> None:
    """The figures are scikit-learn 1.5's for these labels."""
    truth, answered = one_hot([0, 1, 2, 0, 1, 2], 3), one_hot([0, 2, 1, 0, 0, 1], 3)
    assert measures.accuracy(truth, answered) == pytest.approx(2 / 6)
    assert measures.macro_f1(truth, answered) == pytest.approx(0.8 / 3)
    assert measures.matthews(truth, answered) == pytest.approx(0.0)
    # Cat, dog, mouse: matthews_corrcoef of y_true = [1, 1, 1, -1], y_pred = [1, -1, 1, 1] is -0.33.
    assert measures.matthews(one_hot([1, 1, 1, 0], 2), one_hot([1, 0, 1, 1], 2)) == pytest.approx(-1 / 3)
    assert measures.matthews(truth, truth) == pytest.approx(1)
    assert measures.matthews(truth, one_hot([0] * 6, 3)) == 0


def test_several_labels_a_text() -> None:
    truth = np.array([[True, True, False], [False, False, False], [False, True, True]])
    probability = np.array([[0.9, 0.6, 0.1], [0.4, 0.2, 0.3], [0.1, 0.7, 0.4]], np.float32)
    metrics = scores(truth, probability, multi_label=True)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["macro_f1"] == pytest.approx((1 + 1 + 0) / 3)
    assert 0 < metrics["mcc"] < 1


def test_calibration_error_of_a_worked_example() -> None:
    probability = np.array([0.95, 0.95, 0.95, 0.95, 0.61, 0.61])
    right = np.array([True, True, True, False, True, False])
    expected = 4 / 6 * abs(0.95 - 0.75) + 2 / 6 * abs(0.61 - 0.5)
    assert measures.expected_calibration_error(probability, right) == pytest.approx(expected)
    assert measures.expected_calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature: float, multi_label: bool) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 4)).astype(np.float32) * 2
    own = Postprocessor(labels=list("abcd"), multi_label=multi_label, temperature=temperature)
    probability = own.probabilities(logits)
    if multi_label:
        truth = generator.random(probability.shape) < probability
    else:
        drawn = (generator.random((len(logits), 1)) > probability.cumsum(1)).sum(1).clip(max=3)
        truth = one_hot(drawn.tolist(), 4)
    rows = [LabelledText("", tuple(np.array(list("abcd"))[row].tolist())) for row in truth]
    found = best_temperature(logits, rows, list("abcd"), multi_label=multi_label)
    assert found == pytest.approx(temperature, rel=0.05)
    before = scores(
        truth,
        Postprocessor(labels=list("abcd"), multi_label=multi_label, temperature=1).probabilities(logits),
        multi_label=multi_label,
    )
    after = scores(truth, probability, multi_label=multi_label)
    assert after["ece"] <= before["ece"] + 1e-6


@given(logits=LOGITS, multi_label=st.booleans(), temperature=st.floats(0.1, 10))
def test_answers_are_sorted_probabilities(logits: Array, multi_label: bool, temperature: float) -> None:
    labels = [f"label {i}" for i in range(logits.shape[1])]
    answers = Postprocessor(labels=labels, multi_label=multi_label, temperature=temperature)({"logits": logits}, {}, {})
    assert answers["SCORE"].dtype == np.float32
    assert np.all(np.diff(answers["SCORE"], axis=1) <= 0)
    assert np.all((answers["SCORE"] >= 0) & (answers["SCORE"] <= 1))
    assert {label.decode() for label in answers["LABEL"][0]} == set(labels)
    if not multi_label:
        assert answers["SCORE"].sum(1) == pytest.approx(np.ones(len(logits)), abs=1e-5)
    best = [labels.index(label.decode()) for label in answers["LABEL"][:, 0]]
    chosen = logits[np.arange(len(best)), best] / np.float32(temperature)
    assert chosen == pytest.approx((logits / np.float32(temperature)).max(1), rel=1e-5, abs=1e-3)


def test_settings_survive_the_folder(tmp_path: Path) -> None:
    kept = Postprocessor(labels=["gut", "schlecht – sehr"], multi_label=True, temperature=1.5)
    kept.save(tmp_path)
    read = Postprocessor.from_folder(tmp_path)
    assert (read.labels, read.multi_label, read.temperature) == (kept.labels, True, 1.5)


@pytest.mark.parametrize(
    ("name", "text", "multi_label"),
    [
        ("a.tsv", 'text\tlabel\n"half a quote\tgood\nno, really\tbad\n', False),
        ("a.csv", 'text,label\n"""half a quote",good\n"no, really",bad\n', False),
        ("a.jsonl", '{"text": "\\"half a quote", "label": "good"}\n{"text": "no, really", "label": "bad"}\n', False),
        ("b.tsv", 'text\tlabel\n"half a quote\tgood\nno, really\tbad\n', True),
    ],
)
def test_files_of_labelled_texts(tmp_path: Path, name: str, text: str, multi_label: bool) -> None:
    (tmp_path / name).write_text(text)
    assert labelled_texts.load(tmp_path / name, multi_label=multi_label) == [
        LabelledText('"half a quote', ("good",)),
        LabelledText("no, really", ("bad",)),
    ]


def test_several_labels_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\tlabel\none\ta|b\ntwo\t\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one", "label": ["a", "b"]}\n{"text": "two", "label": []}\n')
    read = [labelled_texts.load(tmp_path / name, multi_label=True) for name in ("a.tsv", "a.jsonl")]
    assert read[0] == read[1] == [LabelledText("one", ("a", "b")), LabelledText("two", ())]
    assert indicators(read[0], ["b", "c", "a"]).tolist() == [[True, False, True], [False] * 3]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_text("text\tlabel\nhello\t\n"), r"x.tsv:2: 'label' must be a label, got ''"),
        (lambda p: p.write_text("text\tlabel\n \tgood\n"), r"x.tsv:2: 'text' must be text, got ' '"),
        (lambda p: p.write_text("words\tlabel\nhello\tgood\n"), r"x.tsv:2: 'text' must be text, got None"),
        (lambda p: p.write_text("text\tlabel\n"), "must have at least one text, got none"),
        (lambda p: p.write_text(""), "must have at least one text, got none"),
        (lambda p: p.write_bytes(b"text\tlabel\nhello\xff\tgood\n"), r"x.tsv:2: must be UTF-8, got byte 0xff"),
        (lambda p: None, "cannot be read"),
    ],
)
def test_bad_file_says_which_row_and_why(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path / "x.tsv")
    with pytest.raises(InputError, match=message):
        labelled_texts.load(tmp_path / "x.tsv")
