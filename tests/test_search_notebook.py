"""The notebook of the documentation: its cells run from the first to the last, and show what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tritonpress_generator.repository import read_manifest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "search.ipynb"
RUN = """
import json, sys
import matplotlib.pyplot as plt
notebook = json.load(sys.stdin)
names = {"__name__": "__main__"}
for number, cell in enumerate(notebook["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        for figure in map(plt.figure, plt.get_fignums()):
            figure.savefig(f"figure-{number}.png")
            marks = [sum(len(drawn.get_offsets()) for drawn in axes.collections) for axes in figure.axes]
            print("drawn", number, json.dumps(marks), file=sys.stderr)
        plt.close("all")
"""
"""As Jupyter does it: one namespace, and what a cell has drawn is shown after it."""


@pytest.fixture(scope="module")
def notebook() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return read


def code(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_notebook_is_of_its_format_and_of_no_machine(notebook: dict[str, Any]) -> None:
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert [cell["execution_count"] for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(work|tmp|home|root|usr)/|/site-packages/|Traceback|Warning:", text)
    assert not re.search(r"^\s*[%!]|tiny_", "\n".join("".join(cell["source"]) for cell in code(notebook)), re.M)


def test_notebook_shows_two_plots_that_it_has_drawn(notebook: dict[str, Any]) -> None:
    outputs = [output for cell in code(notebook) for output in cell["outputs"]]
    plots = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(plots) == 2
    assert 4_000 < sum(len(plot) for plot in plots) * 3 // 4 < 80_000


@pytest.mark.slow
def test_notebook_runs_and_builds_the_point_that_it_shows(notebook: dict[str, Any], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN], cwd=tmp_path, input=json.dumps(notebook), text=True,
        capture_output=True, check=False, timeout=1800, env={**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "build" / "search"
    front = sorted((folder / "reviews.search").glob("front-*.yaml"))
    (state,) = (folder / "work").glob("search-*/against-*.jsonl")
    lines = [json.loads(line) for line in state.read_text(encoding="utf-8").splitlines()]
    kinds = [line["kind"] for line in lines if "refused" not in line["result"]]
    drawn = [json.loads(line.split(maxsplit=2)[2]) for line in done.stderr.splitlines() if line.startswith("drawn ")]
    assert len(drawn) == 2
    assert len(list(tmp_path.glob("figure-*.png"))) == 2
    # The candidates in their order; then all that were scored in full, and the front once more.
    assert drawn[0] == [kinds.count("trial") + kinds.count("score")]
    assert drawn[1] == [kinds.count("score") + len(front)]
    # What the notebook says in its last lines is so: the repository that was built has what the recipe's head names.
    head = front[-1].read_text(encoding="utf-8").splitlines()[1]
    said = re.search(r"accuracy (\d\.\d{6}), .*; build (\w+)$", head)
    assert said is not None
    manifest = read_manifest(folder / "again", "reviews")
    assert (f"{manifest['gate']['served']:.6f}", manifest["build"]) == said.groups()
    assert done.stdout.rstrip().endswith(f"the same: accuracy {said[1]}, build {said[2]}")
