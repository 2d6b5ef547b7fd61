"""A few of the hostile files of docs/fuzz_files.py: each is refused in one line, or taken.

In a process of their own, as its hook, its limits and its timers are of a whole process.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
KINDS = ("recipes", "repositories", "bundles", "cuts", "scenarios", "requests", "results")
MISBEHAVING = """
import json, sys
from pathlib import Path
import fuzz_files

fuzz_files.CPU_S = 0.1
outside, work = map(Path, sys.argv[1:])

def refuse():
    raise ValueError("a\\nb")

def endless():
    while True:
        pass

class Misbehaving:
    name, errors = "misbehaving", (ValueError,)

    def case(self, chance, folder):
        yield "another class", lambda: {}["a"]
        yield "two lines", refuse
        yield "outside", lambda: outside.write_text("a")
        yield "inside", lambda: (folder / "a").write_text("a")
        (folder / "link").symlink_to(outside)
        (folder / "loop").symlink_to("loop")
        yield "through a link", lambda: (folder / "link").write_text("a")
        for name in ("link", "loop"):
            yield f"in the place of the {name}", lambda name=name: (folder / "a").rename(folder / name)
            yield "inside", lambda: (folder / "a").write_text("a")
        yield "endless", endless

print(json.dumps(fuzz_files.fuzz(Misbehaving(), range(1), 0, work).failures))
"""


def run(*arguments: str) -> str:
    """Returns what a process prints that finds docs/."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=DOCS, capture_output=True, text=True, timeout=800, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_hostile_files_are_refused_or_taken(tiny_repository: Path) -> None:
    lines = run("fuzz_files.py", str(tiny_repository), *KINDS, "--count", "20", "--seed", "1").splitlines()
    assert [line.split(":")[0] for line in lines] == list(KINDS)
    for line in lines:
        seen = ast.literal_eval(line.partition(" s: ")[2])
        assert sum(seen.values()) >= 20
        assert any(outcome.endswith("Error") for outcome in seen)
        assert any(outcome.endswith("taken") for outcome in seen)


def test_what_a_reader_may_not_do_is_seen(tmp_path: Path) -> None:
    """So that the fuzzer itself is known to find something."""
    (tmp_path / "work").mkdir()
    printed = run("-c", MISBEHAVING, str(tmp_path / "outside"), str(tmp_path / "work"))
    failures = ast.literal_eval(printed)
    assert [failure.split(": ")[0] for failure in failures] == [
        f"misbehaving 0 {what}" for what in ("another class", "two lines", "outside", "through a link", "endless")
    ]
    assert not (tmp_path / "outside").exists()
