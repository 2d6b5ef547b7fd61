"""A training is found done where it is the same one, on whatever machine, and only there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders as tiny
import torch
from tiny_training import TASKS, change, material_of, run, write_training
from tritonpress_generator import cuts
from tritonpress_generator.compression import Compressed, Material, copied
from tritonpress_generator.passes import distill, prune
from tritonpress_generator.training import loop

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 20, "learning_rate": 2e-3, "evaluations": 1}
Made = tuple[Compressed, Material]


def as_it_is(recipe: Path) -> Made:
    return material_of(recipe, recipe.parent / "work")


def with_other_pooling(recipe: Path) -> Made:
    task = TASKS["recommendation"]["recommendation"] | {"pooling": "cls"}
    return as_it_is(change(recipe, task={"recommendation": task}))


def with_other_pooling_of_the_checkpoint(recipe: Path) -> Made:
    path = recipe.parent / "checkpoint" / "1_Pooling" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"pooling_mode_cls_token": True}), encoding="utf-8")
    return as_it_is(recipe)


def with_shorter_texts(recipe: Path) -> Made:
    return as_it_is(change(recipe, serve={"max_length": 40}))


def of_albert(recipe: Path) -> Made:
    given, material = as_it_is(recipe)
    original = replace(given, model=tiny.make("albert", "own").encoder)
    return original, replace(material, original=original)


def of_albert_with_fewer_layers(recipe: Path) -> Made:
    """Whose layers share their weights, which are the same however many they are."""
    original, material = of_albert(recipe)
    return cuts.layers(copied(original), [0]), material


def pruned(recipe: Path, damping: float = 0.01) -> Made:
    given, material = as_it_is(recipe)
    config = prune.Config(ffn=0.5, round_to=8, samples=16, reconstruction_samples=16, damping=damping)
    return prune.apply(given, config, material), material


def pruned_with_other_weights(recipe: Path) -> Made:
    return pruned(recipe, damping=1.0)


def distilled(recipe: Path, **settings: Any) -> Compressed:
    given, material = as_it_is(recipe)
    return distill.apply(given, distill.Config(**QUICK | settings), material)


def trainings(recipe: Path) -> int:
    return len([*(recipe.parent / "work").iterdir()])


def not_trained(*_: Any) -> torch.Tensor:
    pytest.fail("was trained")


def of_machine(monkeypatch: pytest.MonkeyPatch, *, bf16: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (as_it_is, with_other_pooling),
        (as_it_is, with_other_pooling_of_the_checkpoint),
        (as_it_is, with_shorter_texts),
        (of_albert, of_albert_with_fewer_layers),
        (pruned, pruned_with_other_weights),
    ],
)
def test_another_training_is_not_taken_for_it(
    tmp_path: Path, first: Callable[[Path], Made], second: Callable[[Path], Made]
) -> None:
    recipe = write_training(tmp_path, "recommendation")
    for number, make in enumerate((first, second), 1):
        given, material = make(recipe)
        distill.apply(given, distill.Config(**QUICK), material)
        assert trainings(recipe) == number


def test_bits_of_what_was_solved_for_are_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are others with another number of threads (torchrun gives each process one)."""
    recipe = write_training(tmp_path, "recommendation")
    given, material = pruned(recipe)
    done = distill.apply(given, distill.Config(**QUICK), material)
    monkeypatch.setattr(loop, "_step", not_trained)
    other = copied(given)
    with torch.no_grad():
        for parameter in other.model.encoder.parameters():
            parameter.mul_(1 + 1e-6)
    again = distill.apply(other, distill.Config(**QUICK), material).model.state_dict()
    assert trainings(recipe) == 1
    trained = {name: tensor for name, tensor in done.model.state_dict().items() if name.startswith("encoder.")}
    assert all(torch.equal(tensor, again[name]) for name, tensor in trained.items())


@pytest.mark.parametrize("bf16", [False, True])
def test_distillation_is_found_by_a_machine_of_another_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    recipe = write_training(tmp_path, "recommendation")
    of_machine(monkeypatch, bf16=bf16)
    first = distilled(recipe).model.state_dict()
    of_machine(monkeypatch, bf16=not bf16)
    monkeypatch.setattr(loop, "_step", not_trained)
    second = distilled(recipe).model.state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_finetuning_is_found_by_a_machine_of_another_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_training(tmp_path, "recommendation", epochs=1, precision="auto")
    of_machine(monkeypatch, bf16=False)
    first = run(recipe)
    of_machine(monkeypatch, bf16=True)
    monkeypatch.setattr(loop, "_step", not_trained)
    assert run(recipe).progress == first.progress


def test_precision_that_is_asked_for_is_another_training(tmp_path: Path) -> None:
    recipe = write_training(tmp_path, "recommendation")
    for number, precision in enumerate(("fp32", "bf16"), 1):
        distilled(recipe, precision=precision)
        assert trainings(recipe) == number
