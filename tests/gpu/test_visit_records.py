"""The lines of a visit: written as they come, kept for the next call, and come back."""

from __future__ import annotations

from pathlib import Path

import pytest
from visit.records import IncompleteError, Records, read


def records(folder: Path, *, out: str = "out", budget_s: float = 60.0) -> Records:
    return Records(folder / "work", folder / out, budget_s)


def lines(folder: Path) -> dict[str, dict[str, object]]:
    return {entry["item"]: entry for entry in read(folder)}


def failing() -> dict[str, object]:
    raise ZeroDivisionError("a\nkernel")


def partly() -> dict[str, object]:
    raise IncompleteError("b: no answer", {"sequences_per_s": {"a": {"median": 1.0}, "b": {"error": "no answer"}}})


def test_a_failure_is_a_line_and_not_the_end(tmp_path: Path) -> None:
    call = records(tmp_path)
    call.item("first", failing)
    call.item("second", lambda: {"ms": 2.0})
    with call.surviving("part"):
        failing()
    found = lines(tmp_path / "out")
    assert [found[name]["status"] for name in ("first", "second", "part")] == ["failed", "done", "failed"]
    assert found["first"]["why"] == found["part"]["why"] == "ZeroDivisionError: a kernel"
    assert found["second"]["ms"] == 2.0


def test_what_is_done_is_passed_over_by_the_next_call(tmp_path: Path) -> None:
    call = records(tmp_path)
    call.item("first", lambda: {"ms": 1.0})
    call.item("second", failing)
    again = records(tmp_path, out="another")
    again.item("first", failing)
    again.item("second", lambda: {"ms": 2.0})
    # The last call brings all of them back.
    found = lines(tmp_path / "another")
    assert {name: entry["ms"] for name, entry in found.items()} == {"first": 1.0, "second": 2.0}


def test_what_has_no_time_is_not_begun(tmp_path: Path) -> None:
    records(tmp_path, budget_s=5).item("long", failing, needs_s=30)
    assert lines(tmp_path / "out")["long"]["why"] == "needs 30 s, the call has 5 s left"


def test_what_lacks_a_figure_is_kept_and_measured_again(tmp_path: Path) -> None:
    records(tmp_path).item("point", partly)
    records(tmp_path, out="another", budget_s=0).item("point", partly, needs_s=1)
    found = lines(tmp_path / "another")["point"]
    assert (found["status"], found["why"]) == ("failed", "b: no answer")
    assert found["sequences_per_s"]["a"] == {"median": 1.0}
    records(tmp_path, out="third").item("point", lambda: {"sequences_per_s": {}})
    assert lines(tmp_path / "third")["point"]["status"] == "done"


def test_terminal_gets_a_short_line_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records(tmp_path).write("plan", "failed", why="x" * 5000)
    assert capsys.readouterr().out.startswith("  60 s left  plan: failed xxx")
    records(tmp_path).write("plan", "failed", why="x" * 5000)
    assert len(capsys.readouterr().out) < 200
