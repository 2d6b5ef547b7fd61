"""A deploy that was killed is given again, into the same folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from deployments import deploy, use_index, write_repository
from killed_work import victims_of
from tritonpress_generator.deploy import tree

FIRST = {"a": "old", "b/c": "old", "d/e": "old", "f": "same"}
SECOND = {"a": "new", "b/c": "new", "f": "same", "g/h/i": "new"}
WRITTEN = """
import json, sys
from pathlib import Path
from tritonpress_generator.deploy import tree
first, second = map(json.loads, sys.argv[3:])
def prepare(victim):
    if first:
        tree.write(Path(victim), first, {})
def work(victim):
    tree.write(Path(victim), second, {})
"""


@pytest.mark.parametrize("first", [{}, FIRST], ids=["a first deploy", "another deploy"])
def test_writing_killed_at_any_moment_is_done_again(tmp_path: Path, first: dict[str, str]) -> None:
    """Kills it at each touch of the file system in turn; the same call again then does the rest."""
    victims = victims_of(WRITTEN, tmp_path / "victim", json.dumps(first), json.dumps(SECOND))
    assert len(victims) > 2 * len(SECOND)
    for out in victims:
        tree.write(out, SECOND, {})
        found = {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*") if path.is_file()}
        assert tree.earlier(out)["files"].keys() == SECOND.keys()
        del found[tree.RECORD]
        assert found == SECOND
        assert {path.name for path in out.iterdir()} == {tree.RECORD, "a", "b", "f", "g"}


def test_what_a_killed_command_left_is_no_foreign_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_index(tmp_path / "index", monkeypatch)
    (tmp_path / "out" / ".deploy-x" / "image").mkdir(parents=True)
    assert (deploy(write_repository(tmp_path / "model_repo"), tmp_path / "out") / tree.RECORD).is_file()
