"""A server is gated, and its answers recorded, for the build that it serves alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from at_once import AT_ONCE
from switched_builds import NAME, old_and_new, run
from tritonpress_generator import builds
from tritonpress_server import TritonServer


@pytest.fixture
def model_repo(both: Path, tmp_path: Path) -> Path:
    """A repository that serves the tiny build; its canary is of another checkpoint, and was built after it."""
    return Path(shutil.copytree(both, tmp_path / "model_repo"))


def test_answers_of_another_build_are_not_recorded(
    model_repo: Path, both: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = old_and_new(model_repo)
    before = builds.manifests(model_repo, NAME)
    with TritonServer(model_repo, settings=AT_ONCE) as server:
        recipe = both.parent / "sources" / "recipe.yaml"
        command = ["evaluate", recipe, "--target", server.grpc_url, "--repository", model_repo]
        assert run("promote", model_repo, NAME) == 0
        assert run(*command) == 2
        (error,) = capsys.readouterr().err.splitlines()[-1:]
        assert f"{server.grpc_url}: must serve {NAME} with build {new}, as the repository says, got {old}; " in error
        assert builds.manifests(model_repo, NAME) == before
        assert run("promote", model_repo, NAME, new, "--server", server.grpc_url) == 0
        assert run(*command) == 0


def test_canary_is_gated_and_its_answers_recorded(
    model_repo: Path, both: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = old_and_new(model_repo)
    before = builds.manifests(model_repo, NAME)
    recipe = both.parent / "sources" / "recipe.yaml"
    with TritonServer(model_repo, settings=AT_ONCE) as server:
        assert run("evaluate", recipe, "--target", server.grpc_url, "--repository", model_repo, "--canary") == 0
        after = builds.manifests(model_repo, NAME)
        assert after[old] == before[old]
        assert after[new].pop("plans") == {}
        assert after[new].keys() == before[new].keys()
    assert run("evaluate", recipe, "--canary") == 2
    assert "--canary: is asked of a server; give --target HOST:PORT" in capsys.readouterr().err
    assert run("rollback", model_repo, NAME, "--canary") == 0
    assert run("evaluate", recipe, "--target", "127.0.0.1:9", "--repository", model_repo, "--canary") == 2
    assert f"must have a canary of {NAME}, has none; build one, or leave out --canary" in capsys.readouterr().err
    shutil.copytree(model_repo / NAME, model_repo / f"{NAME}_canary")
    assert run("evaluate", recipe, "--target", "127.0.0.1:9", "--repository", model_repo, "--canary") == 2
    assert f"must be the canary of {NAME}, is a model of its own; rename one" in capsys.readouterr().err


def test_what_a_later_build_of_another_checkpoint_has_answered_is_no_baseline(
    model_repo: Path, tiny_sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_sources / "recipe.yaml"
    build = builds.served(model_repo, NAME)
    built = builds.manifests(model_repo, NAME)[build]["gate"]
    with TritonServer(model_repo, settings=AT_ONCE) as server:
        command = ["evaluate", recipe, "--target", server.grpc_url, "--repository", model_repo]
        assert run(*command) == 0
        assert builds.manifests(model_repo, NAME)[build]["gate"]["baseline"] == built["baseline"]
        before = builds.manifests(model_repo, NAME)
        shutil.rmtree(model_repo / NAME / "kept")
        assert run(*command) == 2
    assert "must have FP32's answers to the gate's data, has none; build the" in capsys.readouterr().err
    assert builds.manifests(model_repo, NAME) == before
