"""Labels: their order and probabilities, batches, and what the server refuses."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_sources import LABELS, contexts
from tritonpress_client import Classification, Classifier, InvalidInputError, PartialFailureError


def names(labels: list[Classification]) -> list[str]:
    """Returns the labels' names in order."""
    return [label.label for label in labels]


def test_all_labels_best_first(classifier: Classifier) -> None:
    best = set()
    for text in contexts():
        labels = classifier.classify(text)
        assert sorted(names(labels)) == LABELS
        scores = [label.score for label in labels]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)
        best.add(labels[0].label)
    assert len(best) > 1


def test_fewer_are_the_first_of_all(classifier: Classifier) -> None:
    labels = classifier.classify("red lamp")
    assert classifier.classify("red lamp", 1) == labels[:1]
    # How many there are is known from the answer alone.
    assert classifier.classify("red lamp", 50) == labels


def test_many_are_as_one_by_one_in_order(classifier: Classifier) -> None:
    texts = contexts()
    assert len(texts) > 2 * classifier.limits().max_batch_size
    singly = [names(classifier.classify(text)) for text in texts]
    assert [names(labels) for labels in classifier.classify_many(texts)] == singly
    assert [names(labels) for labels in classifier.classify_many(tuple(texts), 1)] == [found[:1] for found in singly]


@pytest.mark.parametrize("n", [0, -1, 1.5, "1", True])
def test_n_out_of_range_names_the_range(classifier: Classifier, n: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"`n` must be an integer above 0, got {n!r}"):
        classifier.classify("red lamp", n)


def test_a_bad_text_among_many_is_found(classifier: Classifier) -> None:
    with pytest.raises(PartialFailureError, match=r"1 of 10 texts failed \(9\).*`texts\[9\]`: .*TEXT\[0\] must"):
        classifier.classify_many(["red lamp"] * 9 + ["\x00\x07"])
    with pytest.raises(InvalidInputError, match=r"model 'classification' at \S+ refuses the request"):
        classifier.classify("lamp " * 200_000)
    assert classifier.classify("red lamp")
