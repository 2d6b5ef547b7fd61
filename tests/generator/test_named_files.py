"""Which files a recipe names, so that a change of what is in one is seen, wherever in the recipe it is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_training import change, write_training
from tritonpress_generator import recipe as recipes
from tritonpress_generator.named_files import checkpoint_digest, digest


@pytest.mark.parametrize(
    ("task", "settings", "file"),
    [
        ("recommendation", {}, "catalogue.jsonl"),
        ("recommendation", {}, "test.jsonl"),
        ("recommendation", {"data": {"train": ["own.jsonl"]}}, "data/own.jsonl"),
        ("recommendation", {"data": {"validation": ["dev.jsonl", "own.jsonl"]}}, "data/own.jsonl"),
        ("recommendation", {"serve": {"samples": "samples.txt"}}, "samples.txt"),
        ("recommendation", {"passes": [{"crop": {"vocabulary": {"corpus": ["words.txt"]}}}]}, "data/words.txt"),
        ("classification", {"task": {"classification": {"calibration_dataset": "held.tsv"}}}, "held.tsv"),
        ("question_answering", {"task": {"question_answering": {"null_dataset": "none.json"}}}, "none.json"),
    ],
)
def test_change_of_a_file_that_is_named_is_seen(tmp_path: Path, task: str, settings: dict[str, Any], file: str) -> None:
    recipe = recipes.load(change(write_training(tmp_path, task), **settings))
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / file).write_text("one", encoding="utf-8")
    (tmp_path / "other.txt").write_text("one", encoding="utf-8")
    before = digest(recipe, data)
    (tmp_path / "other.txt").write_text("two", encoding="utf-8")
    assert digest(recipe, data) == before
    (tmp_path / file).write_text("two", encoding="utf-8")
    assert digest(recipe, data) != before


def test_text_that_can_be_no_name_is_none(tmp_path: Path) -> None:
    recipe = recipes.load(write_training(tmp_path, "recommendation"))
    nothing = replace(recipe, raw={"name": []})
    assert digest(replace(recipe, raw={"name": ["a\0b", "\ud800", "a" * 5000, "", "."]})) == digest(nothing)


def test_checkpoint_is_its_tokenizer_and_its_settings_too(tmp_path: Path) -> None:
    write_training(tmp_path, "recommendation")
    folder = tmp_path / "checkpoint"
    before = checkpoint_digest(folder, None)
    (folder / "notes.md").write_text("nothing that is read", encoding="utf-8")
    assert checkpoint_digest(folder, None) == before
    (folder / "tritonpress.json").write_text("{}", encoding="utf-8")
    with_choice = checkpoint_digest(folder, None)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert len({before, with_choice, checkpoint_digest(folder, None)}) == 3
