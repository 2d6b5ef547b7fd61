"""What a search keeps is of the files that it was computed of, and its time of all that it does."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_search import QUICK, trained
from tritonpress_generator import repository
from tritonpress_generator.errors import InputError
from tritonpress_generator.progress import Progress
from tritonpress_generator.search.run import search


class Noting(Progress):
    """Notes when the search said what."""

    def __init__(self) -> None:
        super().__init__(shown=False)
        self.at: dict[str, float] = {}

    def stage(self, name: str) -> None:
        self.at[name.split(maxsplit=1)[0]] = time.monotonic()
        super().stage(name)

    def done(self) -> None:
        self.at["done"] = time.monotonic()
        super().done()


def test_edited_catalogue_is_searched_anew(tmp_path: Path) -> None:
    # The model as it is, and no other candidate.
    space = {"layers": [2], "flops": [0.0], "vocabulary": [False], "precisions": [["fuse"]]}
    recipe = trained(tmp_path, search={**QUICK, "space": space})
    noting = Noting()
    before = search(recipe, tmp_path / "out", work=tmp_path / "work", progress=noting)
    # From before the checkpoint is read, to the last build.
    assert before.minutes * 60 >= noting.at["done"] - noting.at["checkpoint"]
    path = tmp_path / "catalogue.jsonl"
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({**item, "text": f"{item['text']} and the garden"}) for item in items]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # What was known of the old catalogue would have the best point build something else than was written of it.
    after = search(recipe, tmp_path / "out", work=tmp_path / "work", progress=Progress(shown=False))
    assert after.points[0].build != before.points[0].build
    assert len([*(tmp_path / "work").glob("search-*")]) == 2


def test_what_a_precision_leaves_out_is_measured_once(tmp_path: Path) -> None:
    precisions = [["fuse", {"quantize": {"samples": 64, "keep": 0.5}}]]
    space = {"layers": [2], "flops": [0.0], "vocabulary": [False], "precisions": precisions}
    recipe = trained(tmp_path, search={**QUICK, "space": space})
    out, work = tmp_path / "out", tmp_path / "work"
    search(recipe, out, work=work, progress=Progress(shown=False))
    (path,) = [path for path in work.glob("kept/*.json") if '"left_out"' in path.read_text(encoding="utf-8")]
    # Were it measured again, this would be gone.
    marked = path.read_text(encoding="utf-8").replace('"metrics": {', '"metrics": {"99": 1, ')
    path.write_text(marked, encoding="utf-8")
    shutil.rmtree(out)
    (engines,) = work.glob("search-*/engines")
    shutil.rmtree(engines)
    search(recipe, out, work=work, progress=Progress(shown=False))
    # Neither for the candidate, which is made anew, nor for the build of its point.
    assert path.read_text(encoding="utf-8") == marked
    assert "99" in repository.read_manifest(out, "recommendation")["graph"]["quantize"]["metrics"]


def test_fault_of_the_disk_is_not_kept_as_one_of_the_candidate(tmp_path: Path) -> None:
    """What was found until then is, and the search goes on when the fault is mended."""
    space = {"layers": [2, 1], "flops": [0.0], "vocabulary": [False], "precisions": [["fuse"]]}
    recipe = trained(tmp_path, search={**QUICK, "space": space})
    out, work = tmp_path / "out", tmp_path / "work"
    first = search(recipe, out, work=work, progress=Progress(shown=False))
    (journal,) = work.glob("search-*/against-*.jsonl")
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    known = "".join(line for line in lines if json.loads(line)["kind"] != "build")
    assert len(known) < len("".join(lines))
    journal.write_text(known, encoding="utf-8")
    in_the_way = journal.with_name("built")
    in_the_way.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"built: must be a folder that can be written"):
        search(recipe, out, work=work, progress=Progress(shown=False))
    assert journal.read_text(encoding="utf-8") == known
    in_the_way.unlink()
    shutil.rmtree(journal.with_name("engines"))  # which are made again where they are wanted
    again = search(recipe, out, work=work, progress=Progress(shown=False))
    assert again.points[0].build == first.points[0].build


def test_another_search_of_a_folder_is_refused(tmp_path: Path) -> None:
    space = {"layers": [2], "flops": [0.0], "vocabulary": [False], "precisions": [["fuse"]]}
    recipe = trained(tmp_path, search={**QUICK, "budget_minutes": 0.001, "space": space})
    arguments: Any = {"out": tmp_path / "out", "work": tmp_path / "work", "progress": Progress(shown=False)}
    with pytest.raises(InputError, match="budget_minutes must be at least"):
        search(recipe, **arguments)
    (folder,) = (tmp_path / "work").glob("search-*")
    running = os.open(folder, os.O_RDONLY)
    fcntl.flock(running, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="search: another search is at"):
        search(recipe, **arguments)
    os.close(running)
