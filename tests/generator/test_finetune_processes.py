"""Several processes compute what one would, and a run that was killed ends as one that was not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import write_examples, write_training
from tritonpress_generator import finetune as finetuning
from tritonpress_generator.finetune import finetune
from tritonpress_generator.training.distributed import World
from tritonpress_generator.training.loop import Progress

# `test_distill.py` trains in two processes, and resumes, within the quick tests.
pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "training_process.py"
ALONE = World(0, 1, torch.device("cpu"))
LORA = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1}}
KILLED: dict[str, Any] = LORA | {"dropout": 0.2, "epochs": 4, "evaluations": 14, "patience": 6}
"""An evaluation every two steps, the first of them the best: early stopping is on its way when the run is killed."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "questions": ("question_answering", {"epochs": 2}),
    "accumulated": ("classification", {"batch_size": 7, "accumulation_steps": 2, "epochs": 2}),
    "adapters": ("classification", LORA | {"lora": {"rank": 4, "alpha": 8}, "batch_size": 13, "epochs": 2}),
    "contrast": ("recommendation", {"batch_size": 13, "epochs": 2}),
    "contrast_accumulated": ("recommendation", {"batch_size": 19, "accumulation_steps": 2, "epochs": 2}),
}
"""None with dropout, whose masks are each process's own. The last batches have 1 example (of 13), 2 (of 19: in each of
two parts one of the processes has none) or 5."""


def start(recipes: list[Path], *options: str, processes: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [str(SCRIPT), *options, *map(str, recipes)]
    return subprocess.Popen(
        command,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill(running: subprocess.Popen[str], recipe: Path) -> None:
    """Kills all that trains, without a warning, as soon as it has trained a few steps."""
    state = recipe.parent / "out" / "training" / "state.pt"
    deadline = time.monotonic() + 300
    while not (state.is_file() and torch.load(state)["progress"]["step"] >= 5):
        if running.poll() is not None or time.monotonic() > deadline:
            running.kill()
            pytest.fail(f"has not trained: {running.communicate()[0]}")
        time.sleep(0.1)
    for path in recipe.parent.glob("pid.*"):
        os.kill(int(path.read_text()), signal.SIGKILL)
    running.communicate(timeout=60)


def progress(recipe: Path) -> Progress:
    """Returns how a run went, as its last state says."""
    return Progress(**torch.load(recipe.parent / "out" / "training" / "state.pt")["progress"])


def weights(recipe: Path) -> dict[str, torch.Tensor]:
    (path,) = (recipe.parent / "out").glob("*.safetensors")
    return load_file(path)


def board(recipe: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(recipe.parent / "out" / "training" / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_same(recipe: Path, other: Path) -> None:
    """Holds two runs to the same losses, evaluations, curves and weights, bit by bit."""
    assert progress(recipe) == progress(other)
    assert board(recipe) == board(other)
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(recipe).items())
    assert (recipe.parent / "out" / "README.md").is_file()


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "_RESAMPLES", 40)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recipes by name: one process killed, two processes killed, then all others by two processes."""
    folder = tmp_path_factory.mktemp("runs")
    recipes = {
        name: write_training(folder / name, task, dropout=0.0, **settings) for name, (task, settings) in CASES.items()
    }
    for name in ("killed", "killed_two", "whole_two"):
        recipes[name] = write_training(folder / name, "question_answering", **KILLED)
    # Fewer held-out examples than processes.
    write_examples(recipes["adapters"].parent / "dev.tsv", "classification", 1, 5)
    write_examples(recipes["questions"].parent / "test.json", "question_answering", 1, 5)
    running = [start([recipes["killed"]], "--slowly"), start([recipes["killed_two"]], "--slowly", processes=2)]
    for process, name in zip(running, ("killed", "killed_two"), strict=True):
        kill(process, recipes[name])
    return recipes


@pytest.fixture(scope="module")
def said(runs: dict[str, Path]) -> str:
    """What two processes say when they train all but the run that one process has begun."""
    together = start([recipe for name, recipe in runs.items() if name != "killed"], processes=2)
    output, _ = together.communicate(timeout=1500)
    assert together.returncode == 0, output
    return output


def test_killed_run_ends_as_one_that_was_not(runs: dict[str, Path], tmp_path: Path) -> None:
    recipe = runs["killed"]
    before = progress(recipe)
    torch.manual_seed(11)
    finetune(recipe, recipe.parent / "out", None, ALONE)
    whole = write_training(tmp_path, "question_answering", **KILLED)
    finetune(whole, tmp_path / "out", None, ALONE)
    assert 5 <= before.step < progress(whole).step < 28
    assert before.worse > 0
    assert progress(whole).losses[: before.step] == before.losses
    assert_same(recipe, whole)


def test_two_killed_processes_end_as_two_that_were_not(runs: dict[str, Path], said: str) -> None:
    assert_same(runs["killed_two"], runs["whole_two"])


@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_would(case: str, runs: dict[str, Path], said: str, tmp_path: Path) -> None:
    task, settings = CASES[case]
    alone = write_training(tmp_path, task, dropout=0.0, **settings)
    for path in runs[case].parent.glob("*.*"):
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    finetune(alone, tmp_path / "out", None, ALONE)
    one, two = progress(alone), progress(runs[case])
    assert len(one.losses) == len(two.losses)
    assert two.losses == pytest.approx(one.losses, rel=1e-3, abs=1e-4)
    assert two.losses[:3] == pytest.approx(one.losses[:3], rel=1e-5)
    for entry, other in zip(one.evaluations, two.evaluations, strict=True):
        assert other == pytest.approx(entry, rel=1e-2)
    # Biases that a softmax takes away have no gradient but rounding, which Adam makes as large as any.
    for name, tensor in weights(alone).items():
        if not name.endswith("bias"):
            torch.testing.assert_close(weights(runs[case])[name], tensor, rtol=1e-2, atol=2e-3)


def test_processes_that_share_no_folder_are_refused_before_they_train(tmp_path: Path) -> None:
    recipe = write_training(tmp_path, "recommendation", epochs=1)
    together = start([recipe], "--apart", processes=2)
    output, _ = together.communicate(timeout=300)
    assert together.returncode != 0
    line = (
        r"^tritonpress finetune: finetune: \S+/out\.\d/training must be one folder for all processes, 1 of 2 do not see"
    )
    assert re.search(line, output, re.MULTILINE), output
    assert not [*tmp_path.glob("out.*/training/*")]


def test_one_process_writes_and_says_how_it_goes(runs: dict[str, Path], said: str) -> None:
    trained = [name for name in runs if name != "killed"]
    assert said.count("training: ") == 2 * len(trained)  # when it begins, and when it ends
    for name in trained:
        files = sorted(path.name for path in (runs[name].parent / "out" / "training").iterdir())
        assert files == ["state.pt", "tensorboard"]
    assert len(list((runs["whole_two"].parent / "out" / "training" / "tensorboard").iterdir())) == 1
    assert "Warning" not in said
