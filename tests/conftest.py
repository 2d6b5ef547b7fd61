"""A tiny encoder with a tiny catalogue, built once, and served once by the real Triton."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_sources import items, queries, write_checkpoint, write_jsonl, write_recipe

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a catalogue, queries and `recipe.yaml`; copy it before changing anything."""
    folder = tmp_path_factory.mktemp("sources")
    write_checkpoint(folder / "checkpoint")
    write_jsonl(folder / "catalogue.jsonl", items())
    write_jsonl(folder / "queries.jsonl", queries())
    write_recipe(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_repository(tiny_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository that the generator has built from the tiny sources; copy it before changing anything."""
    from tritonpress_generator.build import build

    out = tmp_path_factory.mktemp("repository")
    build(tiny_sources / "recipe.yaml", out)
    return out


@pytest.fixture(scope="session")
def tiny_server(tiny_repository: Path) -> Iterator[object]:
    """The embedded Triton with the tiny repository."""
    from tritonpress_server import TritonServer

    with TritonServer(tiny_repository) as server:
        yield server
