"""What passes measure with: examples are counted, not their windows, and sequences fit the model that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_training import change, material_of, write_training
from tritonpress_generator import cli
from tritonpress_generator.compression import original_layers
from tritonpress_generator.examples import finite
from tritonpress_generator.export import torch_infer
from tritonpress_generator.infer import Array
from tritonpress_generator.passes import crop


def test_all_windows_of_the_examples_are_there(trained_task: tuple[str, Path]) -> None:
    given, material = material_of(trained_task[1])
    count = len(material.examples.training)
    whole = material.features(given.tokenizer, count)
    assert (len(whole) > count) == (trained_task[0] == "question_answering")
    fewer = material.features(given.tokenizer, 5)
    assert 5 <= len(fewer) < len(whole)
    assert [one["input_ids"] for one in whole[: len(fewer)]] == [one["input_ids"] for one in fewer]


@pytest.mark.parametrize(("most", "asked"), [(1, 1), (5, 4), (7, 6), (11, 6), (12, 12), (100, 12)])
def test_metric_is_of_so_many_examples_at_most(tmp_path: Path, trained: Any, most: int, asked: int) -> None:
    given, material = material_of(trained("classification", tmp_path))
    head, signature = material.head(given.model)
    infer, calls = finite(torch_infer(head, signature), where="test"), []

    def counted(feed: Any) -> dict[str, Array]:
        calls.append(feed)
        return infer(feed)

    material.score(counted, given.tokenizer, most)
    assert len(material.examples.held_out) == 12
    assert len(calls) == asked <= most


def test_layers_are_named_as_the_original_has_them(tmp_path: Path) -> None:
    given, material = material_of(write_training(tmp_path, "recommendation"))
    assert original_layers(given) == [0, 1]
    both = crop.apply(given, crop.Config(layers=[0, 1]), material)
    upper = crop.apply(both, crop.Config(layers=[1]), material)
    assert (original_layers(both), original_layers(upper)) == ([0, 1], [1])
    assert original_layers(crop.apply(upper, crop.Config(layers=[0]), material)) == [1]


@pytest.mark.parametrize("then", [{"crop": {"layers": 1}}, {"prune": {"ffn": 0.5}}, {"distill": {"epochs": 1}}])
def test_sequences_longer_than_the_positions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], then: dict[str, Any]
) -> None:
    recipe = write_training(tmp_path, "recommendation", max_length=60)
    change(recipe, passes=[{"crop": {"positions": 50}}, then])
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "finetune.max_length must be at most 50 (the model's positions), got 60; lower it" in said


def test_what_a_score_depends_on_has_the_content_of_every_file(tmp_path: Path) -> None:
    recipe = write_training(tmp_path, "recommendation")
    before = material_of(recipe)[1].held_out_hash()
    assert material_of(recipe)[1].held_out_hash() == before
    catalogue = tmp_path / "catalogue.jsonl"
    catalogue.write_text(catalogue.read_text().replace("a", "b"))
    assert material_of(recipe)[1].held_out_hash() != before


def test_what_a_score_depends_on_is_neither_comments_nor_where_the_recipe_lies(tmp_path: Path) -> None:
    """So that the build of a point finds what the search has measured."""
    recipe = write_training(tmp_path, "recommendation")
    (tmp_path / "recipe.search").mkdir()
    other = tmp_path / "recipe.search" / "front-01.yaml"
    other.write_text(f"# Point 1.\n{recipe.read_text()}folder: ..\nsearch: {{budget_minutes: 7}}\n")
    assert material_of(other)[1].held_out_hash() == material_of(recipe)[1].held_out_hash()
    change(other, gate={"dataset": "test.jsonl", "metric": "ndcg@10", "keep": 0.5, "confidence": "point"})
    assert material_of(other)[1].held_out_hash() != material_of(recipe)[1].held_out_hash()
