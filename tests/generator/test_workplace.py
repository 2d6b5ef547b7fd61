"""Folders for what is written: what killed processes have left goes, what others use stays."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tiny_sources import write_recipe
from tritonpress_generator import cli, workplace
from tritonpress_generator.errors import PlaceError
from tritonpress_generator.search.trials import attempted

KILLED = """
import os, signal, sys, tempfile
from tritonpress_generator import workplace
tempfile.tempdir = sys.argv[1]
with workplace.scratch() as folder:
    (folder / "engine").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    assert (left / "engine").exists()
    names = (f"tritonpress-work-{os.getppid()}-x", "tritonpress-work-me-x", "tritonpress-1")
    others = [tmp_path / name for name in names]
    for folder in others:
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with workplace.scratch() as folder, workplace.scratch() as second:
        assert sorted(tmp_path.iterdir()) == sorted([*others, folder, second])
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_folder_in_use_stays_whatever_runs_here_under_its_pid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    # Of a process on another host, whose pid is that of one which runs here.
    left.rename(tmp_path / f"tritonpress-work-{os.getppid()}-left")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with workplace.scratch() as folder:
        used = folder.rename(tmp_path / "tritonpress-work-999999999-used")  # no pid is so large
        with workplace.scratch() as second:
            assert sorted(tmp_path.iterdir()) == sorted([used, second])
        used.rename(folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ["onnxruntime", "onnxruntime_edge", "openvino"])
def test_a_build_says_in_a_line_that_its_folder_has_no_room(
    engine: str, tiny_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = Path(shutil.copytree(tiny_sources, tmp_path / "sources"))
    recipe = write_recipe(sources, engine=engine, graph=[])
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # less than an engine has
    try:
        status = cli.main(["build", str(recipe), "--out", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"tritonpress build: {place}: must have room for what is computed meanwhile (")
    assert not list(place.iterdir())


def test_a_search_takes_no_missing_folder_for_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is refused it keeps, and the next run does not try it again."""

    def measured() -> dict[str, Any]:
        with workplace.scratch() as folder:
            return {"size": folder.stat().st_size}

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert attempted(measured)["size"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(PlaceError, match=r"none: must have room for what is computed meanwhile \("):
        attempted(measured)
