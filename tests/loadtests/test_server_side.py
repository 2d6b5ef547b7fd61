"""What is asked of the server behind a stage: statistics that hold each answer of it."""

from __future__ import annotations

from typing import cast

import pytest
from tritonpress_client import Connection, Duration, ModelStatistics
from tritonpress_loadtests import server_side
from tritonpress_loadtests.server_side import are_counted, settled_statistics

BEFORE, ANSWERED = 100, 5


def statistics(requests: int) -> list[ModelStatistics]:
    """Returns the counters of a model that has answered so many requests."""
    each = Duration(requests, requests)
    return [ModelStatistics("model", "1", requests, requests, {}, each, Duration(), each, each, each, each)]


class Counting:
    """A server that has counted these numbers of requests, one a question, and answers no further question."""

    def __init__(self, *counts: int) -> None:
        self._counts = iter(counts)

    def statistics(self) -> list[ModelStatistics]:
        """Returns the counters."""
        return statistics(next(self._counts))


def settled(*counts: int) -> int:
    """Returns how many requests were counted in what has settled."""
    connection = cast(Connection, Counting(*counts))
    (model,) = settled_statistics(connection, before=statistics(BEFORE), answered={"model": ANSWERED})
    return model.success.count


def test_answers_that_are_counted_late_are_waited_for() -> None:
    assert settled(103, 103, 103, 104, 105, 105) == 105
    # Others may ask it too.
    assert settled(103, 107, 107) == 107


def test_what_is_never_counted_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_side, "_MOST_UNCOUNTED_S", 0.0)
    assert settled(103, 103) == 103


def test_whether_all_is_counted_is_told() -> None:
    assert are_counted(statistics(BEFORE), statistics(105), {"model": ANSWERED})
    assert not are_counted(statistics(BEFORE), statistics(104), {"model": ANSWERED})


def test_a_server_that_counts_anew_is_not_waited_for() -> None:
    assert settled(3, 3) == 3
