"""A few of the hostile files of docs/fuzz_files.py: each is refused in one line, or taken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize(
    ("kind", "count"), [("recipes", 30), ("repositories", 20), ("bundles", 100), ("scenarios", 25), ("requests", 100)]
)
def test_hostile_files_are_refused_or_taken(
    kind: str, count: int, tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(DOCS)])
    from fuzz_files import fuzz
    from hostile_files import KINDS

    found = fuzz(KINDS[kind](tiny_repository), range(count), 1, tmp_path)
    assert found.failures == []
    assert sum(found.seen.values()) >= count
    assert any(outcome.endswith("Error") for outcome in found.seen)
    assert any(outcome.endswith("taken") for outcome in found.seen)


def test_what_a_reader_may_not_do_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the fuzzer itself is known to find something."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(DOCS)])
    from collections.abc import Callable, Iterator
    from random import Random

    import fuzz_files

    monkeypatch.setattr(fuzz_files, "CPU_S", 0.1)
    outside = tmp_path / "outside"

    class Misbehaving:
        name, errors = "misbehaving", (ValueError,)

        def case(self, chance: Random, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
            yield "another class", lambda: {}["a"]
            yield "two lines", self._refuse
            yield "outside", lambda: outside.write_text("a")
            yield "inside", lambda: (folder / "a").write_text("a")
            yield "endless", self._endless

        def _refuse(self) -> None:
            raise ValueError("a\nb")

        def _endless(self) -> None:
            while True:
                pass

    (tmp_path / "work").mkdir()
    found = fuzz_files.fuzz(Misbehaving(), range(1), 0, tmp_path / "work")
    assert [failure.split(": ")[0] for failure in found.failures] == [
        f"misbehaving 0 {what}" for what in ("another class", "two lines", "outside", "endless")
    ]
    assert not outside.exists()
