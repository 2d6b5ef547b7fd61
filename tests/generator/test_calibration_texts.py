"""Graph passes are calibrated on texts that are not the gate's where there are any; the manifest says on which."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_sources import write_task
from tiny_training import FILES, change, write_examples, write_training
from tritonpress_generator import calibration_texts, cli, labelled_texts, repository
from tritonpress_generator import recipe as recipes
from tritonpress_generator.errors import InputError
from tritonpress_generator.evaluate import evaluate
from tritonpress_generator.progress import Progress
from tritonpress_generator.workload import Workload

RECIPES = Path(__file__).parents[2] / "generator" / "recipes"
TASKS = ("classification", "question_answering", "recommendation")


def chosen(recipe: Path, folder: Path | None = None) -> calibration_texts.Calibration:
    workload = Workload.load(recipes.load(recipe), Progress())
    return calibration_texts.choose(workload.recipe, workload.encoder, workload.data, folder or recipe.parent)


def with_examples(folder: Path, task: str) -> Path:
    """Returns a recipe that names training examples beside it."""
    if task == "recommendation":
        return change(write_training(folder, task), graph=["fuse", "quantize"])
    recipe = change(write_task(folder, task), graph=["fuse", "quantize"])
    files = {"train": f"train.{FILES[task]}", "validation": f"dev.{FILES[task]}"}
    for seed, file in enumerate(files.values()):
        write_examples(folder / file, task, 12, seed)
    return change(recipe, data={name: [file] for name, file in files.items()})


@pytest.mark.parametrize("task", TASKS)
def test_training_examples_come_first_then_samples_then_the_tasks_own(task: str, tmp_path: Path) -> None:
    recipe = with_examples(tmp_path, task)
    row = "red lamp" if task != "question_answering" else "which\tred lamp"
    (tmp_path / "samples.txt").write_text(f"{row}\n" * 9)
    change(recipe, serve={"samples": "samples.txt"})
    trained = chosen(recipe)
    assert trained.source == "data.train"
    elsewhere = chosen(recipe, tmp_path / "elsewhere")
    assert (elsewhere.source, elsewhere.texts) == ("serve.samples", 9)
    own = chosen(change(recipe, serve={"samples": None}), tmp_path / "elsewhere")
    assert own.source == ("task.recommendation.catalogue" if task == "recommendation" else "gate.dataset")
    assert len({trained.sha256, elsewhere.sha256, own.sha256}) == 3
    assert {trained.used_by, own.used_by} == {"quantize"}


def test_manifest_says_on_what_and_a_build_that_it_was_the_gates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = change(write_task(tmp_path, "classification"), graph=["fuse", "quantize"])
    change(recipe, gate={"dataset": "texts.tsv", "metric": "accuracy", "keep": 0.5, "confidence": "point"})
    for samples, source in ((None, "gate.dataset"), ("samples.txt", "serve.samples")):
        if samples:
            (tmp_path / samples).write_text("red lamp for the home\n" * 8)
            change(recipe, serve={"samples": samples})
        assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 0
        found = repository.read_manifest(tmp_path / "out", "classification")["calibration"]
        assert (found["source"], found["used_by"]) == (source, "quantize")
        assert ("quantize has seen the gate's own texts" in capsys.readouterr().out) == (samples is None)


def test_build_says_that_the_gates_examples_are_others_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = change(write_training(tmp_path, "recommendation"), graph=["fuse"])
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "test.jsonl").read_bytes())
    files = {"apart": ["dev.jsonl"], "same": ["dev.jsonl", "test.jsonl"], "copied": ["copy.jsonl"]}
    for name, validation in files.items():
        change(recipe, data={"validation": validation})
        assert cli.main(["build", str(recipe), "--out", str(tmp_path / name)]) == 0
        found = repository.read_manifest(tmp_path / name, "recommendation")["gate"]["read_elsewhere"]
        assert found == ([] if name == "apart" else ["data.validation"])
        assert ("gate.dataset is data.validation too: what was" in capsys.readouterr().out) == (name != "apart")


def test_a_training_example_that_could_not_be_asked_is_left_out(tmp_path: Path) -> None:
    """It would be found after all the passes, and a build that has trained for hours be refused."""
    recipe = with_examples(tmp_path, "classification")
    whole = chosen(recipe)
    with (tmp_path / "train.tsv").open("a", encoding="utf-8") as file:
        file.write(f"{'lamp ' * 2000}\tshape\n")
    left = chosen(recipe)
    assert (left.source, left.sha256, left.texts) == ("data.train", whole.sha256, whole.texts)


def test_what_is_evaluated_is_not_calibrated_on(tmp_path: Path) -> None:
    """What is scored is the engine that a build makes, whose calibration has not seen the texts that are asked."""
    recipe = change(write_task(tmp_path, "classification"), graph=["fuse", "quantize"])
    header, *lines = (tmp_path / "texts.tsv").read_text(encoding="utf-8").splitlines()
    few = tmp_path / "few.tsv"
    few.write_text("\n".join([header, *lines[:3]]) + "\n", encoding="utf-8")
    # Fewer than a calibration takes.
    assert 0 <= evaluate(recipe, "engine", dataset=few)["accuracy"] <= 1
    with pytest.raises(InputError, match=r"must be calibrated on at least 8 texts, gate\.dataset has 3"):
        evaluate(change(recipe, gate={"dataset": "few.tsv", "metric": "accuracy"}), "engine")


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        (
            "classification",
            "lamp\n" * 7,
            r"recipe.yaml: quantize must be calibrated on at least 8 texts, serve.samples",
        ),
        ("classification", "which\tlamp\n" * 9, "text 1 must have TEXT alone, without tabs, has 2 parts"),
        ("question_answering", "lamp\n" * 9, "text 1 must have QUESTION and CONTEXT with a tab between them, has 1"),
    ],
)
def test_too_few_texts_and_those_of_another_task_are_refused(
    tmp_path: Path, task: str, text: str, message: str
) -> None:
    recipe = change(write_task(tmp_path, task), graph=["fuse", "quantize"])
    change(recipe, serve={"samples": "samples.txt"})
    (tmp_path / "samples.txt").write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        chosen(recipe)
    assert "\n" not in str(raised.value)
    if "8 texts" in message:
        # Where nothing is calibrated, a few texts are enough to choose the lengths by.
        assert chosen(change(recipe, graph=["fuse"])).texts == 7


def test_a_line_of_samples_ends_where_one_of_json_does(tmp_path: Path) -> None:
    """Other characters that end a line for Python are of the text, and a byte order mark is not."""
    recipe = change(write_task(tmp_path, "question_answering"), graph=["fuse"], serve={"samples": "samples.txt"})
    text = "which\tred\u2028lamp\r\n\nwhich\x85one\tred\x0clamp\n"
    (tmp_path / "samples.txt").write_text(text, encoding="utf-8-sig", newline="")
    workload = Workload.load(recipes.load(recipe), Progress())
    texts = calibration_texts.samples(workload.recipe, workload.encoder, workload.data)
    assert texts == {"QUESTION": ["which", "which\x85one"], "CONTEXT": ["red\u2028lamp", "red\x0clamp"]}


def test_training_examples_of_another_task_are_refused(tmp_path: Path) -> None:
    recipe = with_examples(tmp_path, "classification")
    loaded = recipes.load(recipe)
    assert loaded.data is not None
    (tmp_path / loaded.data.train[0]).write_text("question\tcontext\nwhich\tred lamp\n")
    with pytest.raises(InputError, match="'text' must be text, got None"):
        chosen(recipe)


def test_shipped_samples_are_not_the_gates() -> None:
    recipe = recipes.load(RECIPES / "classification.yaml")
    assert recipe.serve.samples is not None
    lines = recipe.file(recipe.serve.samples).read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 64
    assert len(set(lines)) == len(lines)
    assert not {row.text for row in labelled_texts.load(recipe.file(recipe.gate.dataset))} & set(lines)
