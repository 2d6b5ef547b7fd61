"""What cannot be trained is refused before it is: in one line that says what, where and why, with status 2."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import FILES, change, write_examples, write_training
from tritonpress_generator import cli
from tritonpress_generator.training import loop

Spoil = Callable[[Path], object]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Trains after the sources have been spoilt, and holds what is said to a pattern."""

    def check(task: str, spoil: Spoil, pattern: str, *, trains: bool = False, **settings: Any) -> None:
        recipe = write_training(tmp_path, task, **{"epochs": 1} | settings)
        spoil(tmp_path)
        if not trains:
            monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("was trained"))
        assert cli.main(["finetune", str(recipe), "--out", str(tmp_path / "out")]) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tritonpress finetune: ")]
        assert len(error) == 1
        assert re.search(pattern, error[0]), error[0]
        assert not (tmp_path / "out" / "README.md").exists()

    return check


def finetune(**settings: Any) -> Spoil:
    return lambda folder: change(folder / "recipe.yaml", finetune=settings)


def write(name: str, content: str | bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def first_question(edit: Callable[[dict[str, Any], dict[str, Any]], object], name: str = "train.json") -> Spoil:
    """Spoils the first question of a file, and the paragraph that it is asked of."""

    def spoil(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        paragraph = data["data"][0]["paragraphs"][0]
        edit(paragraph, paragraph["qas"][0])
        (folder / name).write_text(json.dumps(data))

    return spoil


def unanswerable(folder: Path) -> None:
    data = json.loads((folder / "dev.json").read_text())
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"][0] |= {"answers": [], "is_impossible": True}
    (folder / "dev.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("spoil", "pattern"),
    [
        (lambda folder: (folder / "train.json").unlink(), r"must have the file train\.json, has not; give .* --data"),
        (lambda folder: (folder / "test.json").unlink(), r"must have the file test\.json, has not"),
        (write("dev.json", b"\xff"), r"dev\.json:1: must be UTF-8, got byte 0xff"),
        (write("dev.json", ""), r"dev\.json: is not JSON"),
        (write("dev.json", "{"), r"dev\.json: is not JSON"),
        (write("train.json", '{"data": []}'), r"train\.json: must have at least one question"),
        (
            first_question(lambda _, qa: qa["answers"][0].update(answer_start=1)),
            r"train\.json: question '0-0': the context must have '\w+' at character 1, has",
        ),
        (
            first_question(lambda _, qa: qa["answers"][0].update(text="nowhere")),
            r"train\.json: question '0-0': the context must have 'nowhere' at character \d+, has",
        ),
        (
            first_question(lambda _, qa: qa["answers"][0].update(answer_start=10_000)),
            r"train\.json: question '0-0': the context must have '\w+' at character 10000, has ''",
        ),
        (first_question(lambda _, qa: qa.update(question="\u200b")), r"QUESTION '\\u200b' must have text, got only"),
        (
            first_question(lambda _, qa: qa.update(question="\u200b"), "test.json"),
            r"test\.json: QUESTION '\\u200b' must have text, got only",
        ),
        (
            first_question(lambda _, qa: qa.update(question="\ud800 lamp"), "dev.json"),
            r"dev\.json: text '\\ud800 lamp' must be Unicode, has half a surrogate pair at 0",
        ),
        (
            first_question(lambda _, qa: qa.update(question="lamp " * 1000)),
            r"QUESTION 'lamp lamp .*' must be at most 4096 bytes, got 5000",
        ),
        (unanswerable, r"data\.validation: must have a question with an answer, has 12 without"),
        (finetune(max_length=24), r"finetune\.max_length must be at least 26 .*doc_stride 6 \+ 8\), got 24; raise it"),
    ],
)
def test_questions(refused: Callable[..., None], spoil: Spoil, pattern: str) -> None:
    refused("question_answering", spoil, pattern)


@pytest.mark.parametrize(
    ("spoil", "pattern"),
    [
        (lambda folder: (folder / "dev.tsv").unlink(), r"must have the file dev\.tsv, has not"),
        (write("train.tsv", ""), r"train\.tsv: must have at least one text, got none"),
        (write("train.tsv", "text\tlabel\na lamp\t\n"), r"train\.tsv:2: 'label' must be a label, got ''"),
        (write("train.tsv", "text\na lamp\n"), r"train\.tsv:2: 'label' must be a label, got None"),
        (
            write("train.tsv", "text\tlabel\na lamp\tgood\na book\tgood\n"),
            r"the training data must have at least 2 labels, has \['good'\]; add examples",
        ),
        (
            write("dev.tsv", "text\tlabel\na lamp\tage\na book\tother\n"),
            r"dev\.tsv: text 'a book': label must be one of age, shape, got 'other'; correct it, or",
        ),
        (
            write("test.tsv", "text\tlabel\na lamp\tage\n\u200b\tage\n"),
            r"test\.tsv: TEXT '\\u200b' must have text, got only",
        ),
        (write("train.tsv", b"text\tlabel\nlamp\tage\n\xe9\tage\n"), r"train\.tsv:3: must be UTF-8, got byte 0xe9"),
        (
            lambda folder: change(folder / "recipe.yaml", task={"classification": {"labels": ["age", "size"]}}),
            r"text '.*': label must be one of age, size, got 'shape'",
        ),
    ],
)
def test_labelled_texts(refused: Callable[..., None], spoil: Spoil, pattern: str) -> None:
    refused("classification", spoil, pattern)


def test_labelled_texts_without_any_label(refused: Callable[..., None]) -> None:
    spoil = write("train.tsv", "text\tlabel\na lamp\t\na book\t\n")
    refused("classification", spoil, r"the training data must have at least 2 labels, has \[\]", multi_label=True)


@pytest.mark.parametrize(
    ("spoil", "pattern"),
    [
        (write("dev.jsonl", '{"query": "a", "relevant": {"none": 1}}\n'), r"dev\.jsonl:1: relevant item 'none' is not"),
        (write("train.jsonl", "{\n"), r"train\.jsonl:1: is not JSON"),
        (write("train.jsonl", "\n"), r"train\.jsonl: must have at least one query, got none"),
        (
            write("test.jsonl", '{"query": "\\u200b", "relevant": {"T-001": 1}}\n'),
            r"test\.jsonl: query '\\u200b' must have text",
        ),
        (lambda folder: (folder / "catalogue.jsonl").unlink(), r"catalogue\.jsonl: cannot be read"),
    ],
)
def test_pairs(refused: Callable[..., None], spoil: Spoil, pattern: str) -> None:
    refused("recommendation", spoil, pattern)


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"epoch": 3}, r"recipe\.yaml: finetune\.epoch: unknown key; allowed: lora, epochs"),
        ({"lora": {"rnk": 3}}, r"recipe\.yaml: finetune\.lora\.rnk: unknown key"),
        ({"lora": {"rank": 0}}, r"finetune\.lora\.rank: input should be greater than or equal to 1, got 0"),
        ({"epochs": float("inf")}, r"finetune\.epochs: input should be a finite number, got inf"),
        ({"epochs": 0}, r"finetune\.epochs: input should be greater than 0, got 0"),
        ({"seed": -1}, r"finetune\.seed: input should be greater than or equal to 0, got -1"),
        ({"precision": "fp8"}, r"finetune\.precision: input should be 'auto', 'fp32' or 'bf16', got 'fp8'"),
        ({"negatives": 0.5}, r"finetune\.negatives: unknown key"),
        ({"max_length": 65}, r"finetune\.max_length must be at most 64 \(the model's positions\), got 65; lower it"),
    ],
)
def test_settings(refused: Callable[..., None], settings: dict[str, Any], pattern: str) -> None:
    refused("classification", finetune(**settings), pattern)


def serve_more_than_the_model_has(folder: Path) -> None:
    change(folder / "recipe.yaml", serve={"max_length": 256})


def out_is_a_file(folder: Path) -> None:
    (folder / "out").write_text("")


def out_has_an_adapter(folder: Path) -> None:
    (folder / "out" / "training").mkdir(parents=True)
    (folder / "out" / "adapter_model.safetensors").write_bytes(b"")


def out_is_the_checkpoint(folder: Path) -> None:
    (folder / "checkpoint" / "training").mkdir()
    (folder / "out").symlink_to(folder / "checkpoint")


@pytest.mark.parametrize(
    ("spoil", "pattern"),
    [
        (serve_more_than_the_model_has, r"serve\.max_length must be at most 64 \(the model's positions\), got 256"),
        (out_is_a_file, r"--out .*out: must be a folder that can be written, .*out is none; give another"),
        (out_has_an_adapter, r"--out .*out: has an adapter \(adapter_model\.safetensors\) of another training; remove"),
        (
            lambda folder: (folder / "out").symlink_to(folder / "checkpoint"),
            r"--out .*out: must be a new folder, or one",
        ),
        (out_is_the_checkpoint, r"--out .*out: must not be the checkpoint that is trained; give another folder"),
        (lambda folder: (folder / "checkpoint" / "config.json").unlink(), r"checkpoint \./checkpoint: .* no config"),
    ],
)
def test_places(refused: Callable[..., None], spoil: Spoil, pattern: str) -> None:
    refused("classification", spoil, pattern)


def test_place_that_cannot_be_made_is_said_where_that_shows(refused: Callable[..., None]) -> None:
    """As a disk that is full by then."""
    pattern = r"File exists: '.*/out'; the same command goes on from the last state that was saved$"
    refused("classification", lambda folder: (folder / "out").symlink_to("none"), pattern, trains=True)


def test_adapter_beside_a_whole_checkpoint(refused: Callable[..., None]) -> None:
    def out_has_a_checkpoint(folder: Path) -> None:
        (folder / "out" / "training").mkdir(parents=True)
        (folder / "out" / "model.safetensors").write_bytes(b"")

    pattern = r"--out .*out: has a whole checkpoint \(model\.safetensors\) of another training"
    refused("classification", out_has_a_checkpoint, pattern, lora={"rank": 4})


@pytest.mark.parametrize("task", FILES)
@pytest.mark.parametrize("evaluations", [1, 100])
def test_learning_rate_that_is_too_high(refused: Callable[..., None], task: str, evaluations: int) -> None:
    """It shows in the loss, or before that in the answers of an evaluation."""
    pattern = r"finetune: the (loss must be finite, is nan at step \d+|model's answers must be finite, are not); lower "
    settings = {"learning_rate": 1e30, "evaluations": evaluations}
    refused(task, lambda _: None, pattern, trains=True, **settings)


@pytest.mark.parametrize(
    "other",
    [
        finetune(seed=8),
        lambda folder: write_examples(folder / "dev.tsv", "classification", 12, 5),
        lambda folder: change(folder / "recipe.yaml", serve={"max_length": 40}),
        lambda folder: change(folder / "recipe.yaml", task={"classification": {"temperature": 2.0}}),
        lambda folder: (folder / "checkpoint" / "vocab.txt").write_text("lamp"),
    ],
)
def test_state_of_another_run(refused: Callable[..., None], tmp_path: Path, other: Spoil) -> None:
    recipe = write_training(tmp_path, "classification", epochs=1)
    assert cli.main(["finetune", str(recipe), "--out", str(tmp_path / "out")]) == 0
    state = tmp_path / "out" / "training" / "state.pt"
    before = torch.load(state)["fingerprint"]
    (tmp_path / "out" / "README.md").unlink()
    refused("classification", other, r"state\.pt is the state of a run with other", trains=True)
    assert torch.load(state)["fingerprint"] == before


def test_recipe_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = change(write_training(tmp_path, "classification"), data=None)
    assert cli.main(["finetune", str(recipe)]) == 2
    assert "recipe.yaml: must have 'data'; add it, with train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("test.jsonl", '{"query": "\\u200b", "relevant": {"T-001": 1}}\n', r"QUERY '\\u200b' must have text"),
        (
            "catalogue.jsonl",
            '{"id": "T-001", "title": "", "text": "\\u200b"}\n',
            r"text '\\u200b' must have text, got only",
        ),
    ],
)
def test_text_that_cannot_be_served_is_named_by_evaluate_and_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, pattern: str
) -> None:
    recipe = write_training(tmp_path, "recommendation")
    with (tmp_path / name).open("a") as file:
        file.write(content.replace("T-001", "T-new") if name == "catalogue.jsonl" else content)
    for command in (["evaluate", str(recipe)], ["build", str(recipe), "--out", str(tmp_path / "repository")]):
        assert cli.main(command) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tritonpress ")]
        assert len(error) == 1
        assert re.search(pattern, error[0]), error[0]
