"""Repositories with two builds of which every step differs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from caddy import Proxy, running
from certificates import Certificates
from tiny_builds import write_other_sources
from tiny_sources import write_recipe
from tritonpress_generator.build import build
from tritonpress_server import TritonServer


@pytest.fixture(scope="session")
def both(tiny_sources: Path, tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the tiny build serving and another, of which every step differs, as its canary."""
    folder = tmp_path_factory.mktemp("both")
    model_repo = Path(shutil.copytree(tiny_repository, folder / "model_repo"))
    build(write_other_sources(tiny_sources, folder / "sources"), model_repo, canary=True)
    return model_repo


@pytest.fixture(scope="session")
def both_scripting(tiny_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same where a step calls the engine by its name."""
    folder = tmp_path_factory.mktemp("both_scripting")
    sources = Path(shutil.copytree(tiny_sources, folder / "sources"))
    serve = {"max_batch_size": 8, "max_length": 48, "lengths": "exact", "steps": "scripting"}
    build(write_recipe(sources, serve=serve), folder / "model_repo")
    build(write_other_sources(sources, folder / "others"), folder / "model_repo", canary=True)
    return folder / "model_repo"


@pytest.fixture(scope="session")
def proxy(
    tiny_repository: Path,
    tiny_server: TritonServer,
    certificates: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    """The compose file's proxy before the tiny repository's server."""
    with running(tiny_repository, tiny_server, certificates, tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy
