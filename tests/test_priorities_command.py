"""docs/priorities.py: what a flood may cost those of high priority decides the exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[1] / "docs"
EXECUTION_MS = 5.0


@pytest.mark.parametrize(
    ("factor", "status", "says"),
    [(1.0, 0, "kept by"), (1.4, 0, "a longer run could say something else"), (3.0, 1, "missed by")],
)
def test_the_bound_is_the_exit_status(
    factor: float, status: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(DOCS)])
    from priorities import judged

    alone = np.random.default_rng(0).exponential(4.0, size=600)
    assert judged(alone, factor * alone, EXECUTION_MS) == status
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[:2]] == ["high priority alone", "high priority and flood"]
    bound_ms = 1.2 * np.percentile(alone, 99) + EXECUTION_MS
    assert f"p99 alone + 20% + an execution: {bound_ms:.1f} ms" in said[-1] and says in said[-1]


@pytest.mark.slow
@pytest.mark.parametrize("apart", [[], ["--apart"]])
def test_measures_a_recipe(tiny_sources: Path, apart: list[str]) -> None:
    recipe = str(tiny_sources / "recipe.yaml")
    command = [sys.executable, str(DOCS / "priorities.py"), recipe, "--seconds", "8", *apart]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == ("missed by" in done.stdout), done.stdout + done.stderr
    assert "an execution of the flood" in done.stdout and "p99 alone + 20% + an execution" in done.stdout
