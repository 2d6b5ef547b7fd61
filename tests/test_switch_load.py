"""docs/switch_load.py: nothing is lost nor mixed on a tiny repository, and an answer of neither build is seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tritonpress_generator import builds

DOCS = Path(__file__).parents[1] / "docs"
NAME = "recommendation"


@pytest.mark.slow
def test_switches_lose_and_mix_nothing(tiny_repository: Path, tiny_sources: Path) -> None:
    command = [sys.executable, str(DOCS / "switch_load.py"), str(tiny_repository), NAME]
    command += [str(tiny_sources / "recipe.yaml"), "--switches", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 switches, 4 clients; answers by build: {" in done.stdout
    assert "BROKEN" not in done.stdout


def test_an_answer_of_neither_build_is_seen(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(DOCS)])
    from switch_load import TwoBuilds

    golden = builds.read_manifest(tiny_repository, NAME)["golden"]
    other = [
        {**request, "outputs": {**request["outputs"], "SCORE": [score / 2 for score in request["outputs"]["SCORE"]]}}
        for request in golden["requests"]
    ]
    load = TwoBuilds("127.0.0.1:1", {"a": golden, "b": {"requests": other}}, tiny_repository, NAME)
    for share in (1, 0.5, 0.75):
        for request in golden["requests"]:
            outputs = request["outputs"]
            items = np.array([[item.encode() for item in outputs["ITEM_ID"]]], np.object_)
            scores = np.array([outputs["SCORE"]], np.float32) * share
            load._count(request, {"ITEM_ID": items, "SCORE": scores})
    count = len(golden["requests"])
    assert load.by_build == {"a": count, "b": count}
    assert len(load.wrong) == count


def test_builds_with_the_same_answers_cannot_be_told_apart(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(DOCS)])
    from switch_load import TwoBuilds

    golden = builds.read_manifest(tiny_repository, NAME)["golden"]
    with pytest.raises(SystemExit, match="the same answers by both builds"):
        TwoBuilds("127.0.0.1:1", {"a": golden, "b": golden}, tiny_repository, NAME)
