"""A deploy that was killed is given again, into the same folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from deployments import deploy, use_index, write_repository
from tritonpress_generator.deploy import tree

FIRST = {"a": "old", "b/c": "old", "d/e": "old", "f": "same"}
SECOND = {"a": "new", "b/c": "new", "f": "same", "g/h/i": "new"}
KILLED = """
import json, os, signal, sys
from pathlib import Path
from tritonpress_generator.deploy import tree
folder, first, second = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
def write(out, left):
    def counted(event, arguments):
        nonlocal left
        # Every change of a name in the folder passes here: folders made, files opened, renamed and removed.
        if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "open") and str(out) in str(arguments[:2]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(counted)
    tree.write(out, second, {})
    os._exit(0)
for allowed in range(200):
    out = folder / f"victim-{allowed:03}"
    if first:
        tree.write(out, first, {})
    child = os.fork()  # of a process that has all it needs imported: a new one takes seconds
    if not child:
        write(out, allowed)
    _, status = os.waitpid(child, 0)
    print(out, os.waitstatus_to_exitcode(status), flush=True)
    if os.WIFEXITED(status):
        break
"""


@pytest.mark.parametrize("first", [{}, FIRST], ids=["a first deploy", "another deploy"])
def test_writing_killed_at_any_moment_is_done_again(tmp_path: Path, first: dict[str, str]) -> None:
    """Kills it at each touch of the file system in turn; the same call again then does the rest."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), json.dumps(first), json.dumps(SECOND)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    victims = [line.split() for line in done.stdout.splitlines()]
    assert [int(status) for _, status in victims] == [-signal.SIGKILL] * (len(victims) - 1) + [0]
    assert len(victims) > 2 * len(SECOND)
    for out in (Path(name) for name, _ in victims):
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
