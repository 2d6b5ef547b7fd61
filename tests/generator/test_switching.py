"""Builds beside one another, and the switch between them in the files; `test_switched_servers.py` is on servers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from killed_work import victims_of
from switched_builds import CANARY, NAME, old_and_new, run, states
from tritonpress_generator import builds, repository, workplace


@pytest.fixture
def model_repo(both: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(both, tmp_path / "model_repo"))


def whole(model_repo: Path) -> None:
    """Every ensemble's steps are there, as they were written."""
    for name in builds.workloads(model_repo):
        assert repository.changed_files(model_repo, repository.read_manifest(model_repo, name)) == []


def test_a_canary_stands_beside_and_changes_nothing(both: Path, tiny_repository: Path) -> None:
    old, new = old_and_new(both)
    assert states(both) == {old: "served", new: "canary"}
    assert (both / NAME / "config.pbtxt").read_bytes() == (tiny_repository / NAME / "config.pbtxt").read_bytes()
    steps = {step.model_name for step in builds.read_config(both / CANARY).ensemble_scheduling.step}
    assert not steps & {step.model_name for step in builds.read_config(both / NAME).ensemble_scheduling.step}
    assert [row["build"] for row in json.loads((both / NAME / "manifest.json").read_text())["builds"]] == [old, new]
    whole(both)


def test_promote_and_rollback_switch_the_files(model_repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = old_and_new(model_repo)
    before = (model_repo / NAME / "config.pbtxt").read_bytes()
    assert run("promote", model_repo, NAME) == 0
    assert f"{NAME}: build {new} serves, {old} did before" in capsys.readouterr().out
    assert states(model_repo) == {new: "served", old: "previous"}
    assert json.loads((model_repo / NAME / "manifest.json").read_text())["build"] == new
    assert run("promote", model_repo, NAME) == 0  # the canary names that build still
    assert "serves as before" in capsys.readouterr().out
    assert builds.previous(model_repo, NAME) == [old]
    assert run("rollback", model_repo, NAME) == 0
    assert (model_repo / NAME / "config.pbtxt").read_bytes() == before
    assert states(model_repo) == {old: "served", new: "canary"}
    whole(model_repo)


def test_old_builds_are_collected_and_none_that_an_ensemble_names(
    model_repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = old_and_new(model_repo)
    assert run("promote", model_repo, NAME, "--keep", "0") == 0
    # A server that polls has not seen it yet, and serves the old one.
    assert states(model_repo) == {new: "served", old: "previous"}
    again = f"tritonpress promote {model_repo} {NAME} {new} --keep 0"
    line = f"{NAME}: {old} stays for servers that have yet to follow; once they have: {again}"
    assert line in capsys.readouterr().out.splitlines()
    assert run(*again.split()[1:]) == 0
    assert "stays" not in capsys.readouterr().out
    assert states(model_repo) == {new: "served"}
    assert len([path for path in model_repo.iterdir() if path.name.startswith(f"{NAME}_")]) == 4
    whole(model_repo)
    assert run("rollback", model_repo, NAME) == 2
    assert run("promote", model_repo, NAME, old) == 2


def test_what_a_canary_names_stays(model_repo: Path) -> None:
    old, new = old_and_new(model_repo)
    assert run("promote", model_repo, NAME, old, "--keep", "0") == 0
    assert states(model_repo) == {old: "served", new: "canary"}
    assert run("rollback", model_repo, NAME, "--canary", "--keep", "1") == 0
    assert states(model_repo) == {old: "served", new: "kept"}
    assert not (model_repo / CANARY).exists()
    assert run("promote", model_repo, NAME, new) == 0
    assert states(model_repo) == {new: "served", old: "previous"}


@pytest.mark.parametrize(
    ("arguments", "spoil", "message"),
    [
        (["promote", "nothing"], None, "has no workload 'nothing'; choose from: recommendation"),
        (["promote", CANARY], None, f"has no workload '{CANARY}'; choose from: recommendation"),
        (["promote", NAME, "0123456789ab"], None, "has no build '0123456789ab'; choose from: "),
        (["rollback", NAME], None, "no build lies there that served before"),
        (["promote", NAME, "--server", "127.0.0.1:1"], None, "no Triton server answers at 127.0.0.1:1"),
        (["promote", NAME, "--server", "nonsense"], None, "must be HOST:PORT"),
        (["rollback", NAME, "--canary"], lambda m: shutil.rmtree(m / CANARY), "has no canary; builds that lie there"),
        (["promote", NAME], lambda m: shutil.rmtree(m / CANARY), "has no canary; say which build"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    model_repo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], spoil: object, message: str
) -> None:
    if spoil is not None:
        spoil(model_repo)  # type: ignore[operator]
    before = (model_repo / NAME / "config.pbtxt").read_bytes()
    assert run(arguments[0], model_repo, *arguments[1:]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert (model_repo / NAME / "config.pbtxt").read_bytes() == before


def test_a_build_with_a_changed_file_is_not_promoted(model_repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, new = old_and_new(model_repo)
    step = repository.read_manifest(model_repo, CANARY)["steps"]["engine"]
    (model_repo / step / "1" / "model.onnx").write_bytes(b"")
    assert run("promote", model_repo, NAME) == 1
    assert f"build {new}: {step}/1/model.onnx has changed; nothing was switched" in capsys.readouterr().err
    assert builds.served(model_repo, NAME) != new


def test_another_model_in_the_place_of_the_canary_is_refused_before_anything_is_changed(
    model_repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("promote", model_repo, NAME) == 0
    step = repository.read_manifest(model_repo, NAME)["steps"]["tokenizer"]
    shutil.rmtree(model_repo / CANARY)
    shutil.copytree(model_repo / step, model_repo / CANARY)
    before = (model_repo / NAME / "config.pbtxt").read_bytes()
    assert run("rollback", model_repo, NAME) == 2
    assert "is a model of its own; rename one of the workloads" in capsys.readouterr().err
    assert (model_repo / NAME / "config.pbtxt").read_bytes() == before


def test_a_config_of_others_that_does_not_parse_keeps_what_is_old_and_not_the_switch(model_repo: Path) -> None:
    old, new = old_and_new(model_repo)
    (model_repo / "stranger").mkdir()
    (model_repo / "stranger" / "config.pbtxt").write_text("{")
    for _ in range(2):
        assert run("promote", model_repo, NAME, new, "--keep", "0") == 0
    assert states(model_repo) == {new: "served", old: "previous"}


def test_a_canary_of_nothing_is_refused(tiny_sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", tiny_sources / "recipe.yaml", "--out", tmp_path, "--canary") == 2
    assert "must serve recommendation for a canary beside it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_workload_is_changed_by_one_process_at_a_time(model_repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with workplace.at_work(model_repo, NAME, wait=True):
        assert run("promote", model_repo, NAME) == 2
    assert "another build, promote or rollback is changing it" in capsys.readouterr().err
    assert run("promote", model_repo, NAME) == 0


PROMOTED = """
import shutil, sys
from tritonpress_generator import cli, switching
def prepare(victim):
    shutil.copytree(sys.argv[3], victim)
def work(victim):
    command = ["promote", victim, "recommendation", "--keep", "0"]
    return cli.main(command) or cli.main(command)  # the first switches, the second removes what served before
"""


def test_promote_killed_at_any_moment_leaves_a_whole_repository(model_repo: Path) -> None:
    """Kills it at each touch of the file system in turn; the same command again then does the rest."""
    old, new = old_and_new(model_repo)
    seen = []
    for victim in victims_of(PROMOTED, model_repo.with_name("victim"), str(model_repo), step=9):
        whole(victim)
        seen.append(builds.served(victim, NAME))
        for _ in range(2):
            assert run("promote", victim, NAME, "--keep", "0") == 0
        assert states(victim) == {new: "served"}
        assert not list(victim.rglob(".build-*"))
        whole(victim)
    assert seen == sorted(seen, key=[old, new].index)
    assert (seen[0], seen[-1]) == (old, new)
    assert len(seen) > 8
