"""Tiny models of every task, built once, and served once by the real Triton."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from at_once import AT_ONCE
from certificates import Certificates, write_certificates
from hypothesis import HealthCheck, settings
from tiny_sources import TASKS, items, queries, write_checkpoint, write_jsonl, write_recipe, write_task
from tritonpress_server.runtime import OUR_BACKENDS

# The files beside a backend's `model.py` are imported as Triton's stub does it.
sys.path.append(str(OUR_BACKENDS / "tensorrt"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# How long an example takes says how busy the machine is. The examples are the same in every run, unless new ones are
# asked for.
settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not os.environ.get("TRITONPRESS_RANDOM"),
)
settings.load_profile("tests")


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

    with TritonServer(tiny_repository, settings=AT_ONCE) as server:
        yield server


@pytest.fixture(scope="session")
def task_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder for each further task, which has a checkpoint, data and `recipe.yaml`."""
    folder = tmp_path_factory.mktemp("tasks")
    for task in TASKS:
        write_task(folder / task, task)
    path = folder / "question_answering" / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    # So that some of the tiny model's answers are that there is none, and one word has fewer answers than asked for.
    recipe["task"]["question_answering"] |= {"null_threshold": -1.5, "n_best": 3}
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def task_server(
    task_sources: Path, tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[object]:
    """The embedded Triton with a model of each task, named after it."""
    from tritonpress_generator.build import build
    from tritonpress_server import TritonServer

    repository = Path(shutil.copytree(tiny_repository, tmp_path_factory.mktemp("task_repository") / "model_repo"))
    for task in TASKS:
        build(task_sources / task / "recipe.yaml", repository)
    with TritonServer(repository, settings=AT_ONCE) as server:
        yield server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority, and what it has signed."""
    return write_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Path]:
    """Copies, into a folder, the recipe of a task whose checkpoint was trained, and its data; returns the recipe."""
    from tiny_training import change, run, write_training

    made: dict[str, Path] = {}

    def copied(task: str, folder: Path) -> Path:
        if task not in made:
            made[task] = tmp_path_factory.mktemp(task)
            recipe = write_training(made[task], task)
            run(recipe, made[task] / "trained")
            change(recipe, checkpoint={"source": "./trained"})
        return Path(shutil.copytree(made[task], folder, dirs_exist_ok=True)) / "recipe.yaml"

    return copied


@pytest.fixture(scope="module", params=["classification", "question_answering", "recommendation"])
def trained_task(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    trained: Callable[[str, Path], Path],
) -> tuple[str, Path]:
    """A task, and the recipe of its trained checkpoint in a folder of the test's file."""
    return request.param, trained(request.param, tmp_path_factory.mktemp(request.param))
