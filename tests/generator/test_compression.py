"""What passes measure with: examples are counted, not their windows, and sequences fit the model that reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import change, material_of, write_training
from tritonpress_generator import cli, cuts
from tritonpress_generator.compression import Compressed, Material, copied, original_layers
from tritonpress_generator.examples import finite
from tritonpress_generator.export import torch_infer
from tritonpress_generator.importance import gradients, least_important
from tritonpress_generator.infer import Array
from tritonpress_generator.passes import crop, prune
from tritonpress_generator.search.estimate import Estimator
from tritonpress_generator.structure import groups


def test_all_windows_of_the_examples_are_there(trained_task: tuple[str, Path]) -> None:
    given, material = material_of(trained_task[1])
    count = len(material.examples.training)
    whole = material.features(given.tokenizer, count)
    assert (len(whole) > count) == (trained_task[0] == "question_answering")
    fewer = material.features(given.tokenizer, 5)
    assert 5 <= len(fewer) < len(whole)
    assert [one["input_ids"] for one in whole[: len(fewer)]] == [one["input_ids"] for one in fewer]


@pytest.mark.parametrize(("most", "asked"), [(1, 1), (5, 5), (7, 7), (11, 11), (12, 12), (100, 12)])
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


def test_threshold_of_the_checkpoint_judges_no_other_model(tmp_path: Path, trained: Any) -> None:
    """It was chosen with questions that have no answer; those that decide in a training have one."""
    given, material = material_of(trained("question_answering", tmp_path))
    head, signature = material.head(given.model)
    infer = torch_infer(head, signature)
    score = material.score(infer, given.tokenizer)
    assert score > 0
    # Below it, nothing is answered.
    (tmp_path / "trained" / "tritonpress.json").write_text(json.dumps({"null_threshold": -1e9}))
    given, material = material_of(material.recipe.path)
    assert material.checkpoint.chosen == {"null_threshold": -1e9}
    assert material.score(infer, given.tokenizer) == score


def turned(width: int) -> Any:
    """Returns a rotation of embeddings, which leaves all that they are to each other as it is."""
    return np.linalg.qr(np.random.default_rng(0).standard_normal((width, width)))[0].astype(np.float32)


def test_metric_is_of_queries_beside_the_items_of_the_original(tmp_path: Path, trained: Any) -> None:
    """As a catalogue's are embedded by it: a model that is the original turned round serves nonsense."""
    given, material = material_of(trained("recommendation", tmp_path))
    head, signature = material.head(given.model)
    infer, asked = torch_infer(head, signature), []

    def other(feed: Any) -> dict[str, Array]:
        asked.append(len(feed["input_ids"]))
        return {"embedding": infer(feed)["embedding"] @ turned(32)}

    original = material.score(infer, given.tokenizer)
    assert material.score(other, given.tokenizer) < original / 2
    assert sum(asked) == len(material.examples.held_out)
    # With a tokenizer of its own, by which the original is not asked.
    cropped = crop.apply(given, crop.Config(vocabulary=crop.VocabularyConfig()), material)
    head, signature = material.head(cropped.model)
    assert material.score(torch_infer(head, signature), cropped.tokenizer) == original


def test_loss_is_of_queries_beside_the_items_of_the_original(tmp_path: Path, trained: Any) -> None:
    given, material = material_of(trained("recommendation", tmp_path))
    head, _ = material.head(given.model)
    of_both, of_queries = (
        next(material.batches(material.features(given.tokenizer, 24, as_served=as_served), 24))
        for as_served in (False, True)
    )
    turn = torch.from_numpy(turned(32))
    with torch.no_grad():
        own = material.losses(head, of_queries)
        other = material.losses(lambda *inputs: head(*inputs) @ turn, of_queries)
        assert torch.allclose(own, material.losses(head, of_both), atol=1e-4)
    assert other.mean() > own.mean() + 1


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> tuple[Compressed, Material]:
    """A model whose queries, beside its own items, want another layer than beside those of the original."""
    given, material = material_of(write_training(tmp_path_factory.mktemp("random"), "recommendation"))
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in given.model.encoder.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return given, replace(material, original=given)


def test_layers_go_by_the_loss_beside_the_items_of_the_original(random: tuple[Compressed, Material]) -> None:
    given, material = random

    def best(*, as_served: bool) -> int:
        losses = []
        for layer in (0, 1):
            head, _ = material.head(cuts.layers(copied(given), [layer]).model)
            features = material.features(given.tokenizer, 256, as_served=as_served)
            with torch.inference_mode():
                losses.append(sum(float(material.losses(head, b).sum()) for b in material.batches(features, 32)))
        return losses.index(min(losses))

    (left,) = crop.apply(given, crop.Config(layers=1), material).report["crop"]["layers"]
    assert left == best(as_served=True) != best(as_served=False)


def test_units_go_by_the_loss_beside_the_items_of_the_original(random: tuple[Compressed, Material]) -> None:
    given, material = random

    def found(*, as_served: bool) -> list[Any]:
        model = copied(given).model.requires_grad_(False)
        head, _ = material.head(model)
        features = material.features(given.tokenizer, 256, as_served=as_served)
        return gradients(groups(model), material.batches(features, 32), partial(material.losses, head))

    served, alone = found(as_served=True), found(as_served=False)
    estimator = Estimator(copied(given), material, samples=256, length=32)
    information = [np.square(one).mean(0) / 2 for one in served]
    assert all(np.allclose(*pair, rtol=1e-3) for pair in zip(estimator._information, information, strict=True))
    config = prune.Config(ffn=0.5, round_to=1, samples=256, reconstruct=False)
    result = prune.apply(given, config, material)
    ((_, kept),) = result.cuts
    neurons = [number for number, group in enumerate(groups(given.model)) if group.kind == "ffn"]
    by_both = [
        [
            sorted({*range(64)} - {*least_important(of[number], 64 - left)})
            for number, left in zip(neurons, result.report["prune"]["ffn"], strict=True)
        ]
        for of in (served, alone)
    ]
    assert kept == by_both[0] != by_both[1]


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
    changed = material_of(recipe)[1].held_out_hash()
    assert changed != before
    weights = tmp_path / "checkpoint" / "model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    assert material_of(recipe)[1].held_out_hash() not in {before, changed}


def test_what_a_score_depends_on_is_neither_comments_nor_where_the_recipe_lies(tmp_path: Path) -> None:
    """So that the build of a point finds what the search has measured."""
    recipe = write_training(tmp_path, "recommendation")
    (tmp_path / "recipe.search").mkdir()
    other = tmp_path / "recipe.search" / "front-01.yaml"
    other.write_text(f"# Point 1.\n{recipe.read_text()}folder: ..\nsearch: {{budget_minutes: 7}}\n")
    assert material_of(other)[1].held_out_hash() == material_of(recipe)[1].held_out_hash()
    change(other, gate={"dataset": "test.jsonl", "metric": "ndcg@10", "keep": 0.5, "confidence": "point"})
    assert material_of(other)[1].held_out_hash() != material_of(recipe)[1].held_out_hash()
