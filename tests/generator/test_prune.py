"""Pruning: what matters least goes, what is left is solved for, and the gate sees it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders as tiny
import torch
from at_once import AT_ONCE
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import change, material_of, write_examples, write_training
from tritonpress_generator import cli, repository
from tritonpress_generator.errors import InputError
from tritonpress_generator.importance import gradients, least_important
from tritonpress_generator.passes import prune
from tritonpress_generator.reconstruction import reconstruct
from tritonpress_generator.structure import groups
from tritonpress_server import TritonServer


def batch(seed: int = 0, size: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 90, (size, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", ["bert", "modernbert", "albert"])
def test_gradients_are_those_of_each_sequence(family: str) -> None:
    model = tiny.make(family, "own").requires_grad_(False)
    of = groups(model.encoder)

    def losses(feed: dict[str, torch.Tensor]) -> torch.Tensor:
        return (
            model(feed["input_ids"], feed["attention_mask"]).square().sum(1) * 0
            + model(feed["input_ids"], feed["attention_mask"])[:, 0]
        )

    found = gradients(of, [batch()], losses)
    # By finite differences: the units of one group, one sequence after the other.
    group, step, unit = of[1], 1e-2, 3
    for row in range(2):
        values = []
        for factor in (1 - step, 1 + step):

            def scale(_: Any, inputs: tuple[torch.Tensor], factor: float = factor) -> Any:
                by_unit = inputs[0].clone()
                by_unit[..., unit] *= factor
                return (by_unit,)

            handle = group.read_by.register_forward_pre_hook(scale)
            feed = {name: tensor[row : row + 1] for name, tensor in batch().items()}
            values.append(float(model(feed["input_ids"], feed["attention_mask"])[0, 0]))
            handle.remove()
        assert found[1][row, unit] == pytest.approx((values[1] - values[0]) / (2 * step), rel=0.05, abs=1e-5)


@settings(deadline=None)
@given(st.integers(2, 7), st.integers(0, 2**32 - 1), st.data())
def test_least_important_units_cost_no_more_than_the_diagonal_says(units: int, seed: int, data: st.DataObject) -> None:
    sampled = np.random.default_rng(seed).normal(size=(9, units)).astype(np.float32)
    count = data.draw(st.integers(0, units))
    chosen = least_important(sampled, count)
    assert len(set(chosen)) == count
    fisher = sampled.astype(float).T @ sampled
    diagonal = np.argsort(np.diag(fisher), kind="stable")[:count]
    assert fisher[np.ix_(chosen, chosen)].sum() <= fisher[np.ix_(diagonal, diagonal)].sum() * (1 + 1e-9) + 1e-9


def test_units_that_stand_for_each_other_do_not_both_go() -> None:
    alike = np.array([[1.0, 1.0, 1.2], [1.0, 1.0, -1.2]], np.float32)
    assert least_important(alike, 2) != [0, 1]


@pytest.mark.parametrize(
    "family", ["bert", "distilbert", "modernbert", "nomic_bert", "albert", "deberta-v2", "deberta-v3"]
)
def test_what_is_left_is_nearer_to_the_original_after_it_is_solved_for(family: str) -> None:
    original = tiny.make(family, "own").requires_grad_(False)
    pruned = copy.deepcopy(original)
    kept = [group.keep(range(0, group.units, 2)) if group.units > 1 else group for group in groups(pruned.encoder)]
    plain = copy.deepcopy(pruned)
    feeds = [batch(seed, 24) for seed in range(6)]

    def run(model: Any, feed: dict[str, torch.Tensor]) -> None:
        model(feed["input_ids"], feed["attention_mask"])

    errors = [
        reconstruct(group, whole, feeds, run, (pruned, original), damping=1e-3)
        for group, whole in zip(kept, groups(original.encoder), strict=True)
    ]
    assert all(0 <= error < 1 for error in errors)
    held_out = batch(99, 32)
    with torch.inference_mode():
        wanted, before, after = (
            model(held_out["input_ids"], held_out["attention_mask"]) for model in (original, plain, pruned)
        )
    assert (after - wanted).norm() < 0.8 * (before - wanted).norm()


def test_pass_leaves_what_the_recipe_says(trained_task: tuple[str, Path]) -> None:
    given_model, material = material_of(trained_task[1])
    before = copy.deepcopy(given_model.model.state_dict())
    config = prune.Config(heads=0.25, ffn=0.5, round_to=8)
    result = prune.apply(given_model, config, material)
    report = result.report["prune"]
    assert sum(report["heads"]) == 3
    assert sum(report["ffn"]) == 64
    assert all(count % 8 == 0 for count in report["ffn"])
    assert 0.4 < report["products"] < 0.8
    assert all(error <= 1 for error in report["errors"])
    assert result.size_bytes < given_model.size_bytes
    assert all(torch.equal(before[name], tensor) for name, tensor in given_model.model.state_dict().items())


def test_pass_is_the_same_when_it_is_done_again(trained_task: tuple[str, Path]) -> None:
    given_model, material = material_of(trained_task[1])
    config = prune.Config(ffn=0.25, round_to=16)
    first, second = (prune.apply(given_model, config, material).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_multiplications_are_taken_out_where_they_cost_the_least(trained_task: tuple[str, Path], share: float) -> None:
    given_model, material = material_of(trained_task[1])
    report = prune.apply(given_model, prune.Config(flops=share, round_to=1, reconstruct=False), material).report[
        "prune"
    ]
    assert 1 - share - 0.12 <= report["products"] <= 1 - share + 0.02
    assert min(*report["heads"], *report["ffn"]) >= 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 0.9}, "heads must leave every layer 1 at least, a share of 0.9 leaves 0 of 4 for 2 layers"),
        ({"ffn": 0.9, "round_to": 32}, "ffn must leave every layer 32 at least, a share of 0.9 leaves 0 of 128"),
        ({"flops": 0.99}, "flops must leave every layer a head and a neuron, 0.99 does not"),
    ],
)
def test_too_much_is_refused(trained_task: tuple[str, Path], config: dict[str, Any], message: str) -> None:
    given_model, material = material_of(trained_task[1])
    with pytest.raises(InputError, match=message):
        prune.apply(given_model, prune.Config(**config), material)


@pytest.mark.parametrize(
    ("settings_of_pass", "message"),
    [
        ({}, "give heads and ffn, or flops"),
        ({"heads": 0.1, "flops": 0.2}, "give heads and ffn, or flops"),
        ({"heads": 1.0}, "heads: input should be less than 1"),
        ({"head": 0.1}, "passes[0].prune: head: unknown key; allowed: heads, ffn, flops"),
    ],
)
def test_settings_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings_of_pass: dict[str, Any], message: str
) -> None:
    recipe = change(write_training(tmp_path, "classification"), passes=[{"prune": settings_of_pass}])
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_build_serves_the_pruned_model(tmp_path: Path, trained: Any) -> None:
    task = "classification"
    recipe = trained(task, tmp_path)
    change(recipe, passes=[{"prune": {"heads": 0.25, "ffn": 0.25, "round_to": 8}}], graph=["fuse", "quantize"])
    out = tmp_path / "out"
    assert cli.main(["build", str(recipe), "--out", str(out)]) == 0
    manifest = repository.read_manifest(out, task)
    assert [stage["stage"] for stage in manifest["stages"]] == ["torch FP32", "prune", "ONNX FP32", "fuse + quantize"]
    assert sum(manifest["passes"]["prune"]["heads"]) == 3
    assert cli.main(["verify", str(out)]) == 0
    with TritonServer(out, settings=AT_ONCE) as server:
        assert cli.main(["evaluate", str(recipe), "--target", server.grpc_url, "--repository", str(out)]) == 0


UNHARMED: dict[str, Any] = {"crop": {"vocabulary": {}}}
"""Leaves all answers as they are."""
HARMED: dict[str, Any] = {"prune": {"ffn": 0.5, "reconstruct": False}}


@pytest.mark.parametrize(
    ("passes", "last", "first_missed"),
    [
        ([HARMED, UNHARMED], "crop", "prune"),
        ([UNHARMED, HARMED], "prune", "prune"),
        ([HARMED, {"prune": {"heads": 0.5, "reconstruct": False}}], "passes[1] (prune)", "passes[0] (prune)"),
        ([UNHARMED, {"crop": {"layers": 1}}], "passes[1] (crop)", "passes[1] (crop)"),
    ],
)
def test_gate_names_the_pass_that_broke_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trained: Any,
    passes: list[dict[str, Any]],
    last: str,
    first_missed: str,
) -> None:
    recipe = change(
        trained("recommendation", tmp_path),
        passes=passes,
        gate={"dataset": "test.jsonl", "metric": "agreement", "keep": 1.0, "agreement": 1.0, "confidence": "point"},
    )
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert f"less after {last} (first missed after {first_missed}); nothing was written" in error
    assert not (tmp_path / "out" / "recommendation").exists()


def test_each_of_several_passes_of_one_word_has_its_report_and_its_row(tmp_path: Path, trained: Any) -> None:
    passes = [{"prune": {"ffn": share, "round_to": 8, "reconstruct": False}} for share in (0.25, 0.5)]
    recipe = change(trained("recommendation", tmp_path), passes=[passes[0], UNHARMED, passes[1]])
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 0
    manifest = repository.read_manifest(tmp_path / "out", "recommendation")
    assert [row["stage"] for row in manifest["stages"]][1:4] == ["passes[0] (prune)", "crop", "passes[2] (prune)"]
    done = manifest["passes"]
    assert sorted(done) == ["crop", "passes[0] (prune)", "passes[2] (prune)"]
    assert [sum(done[name]["ffn"]) for name in ("passes[0] (prune)", "passes[2] (prune)")] == [96, 48]


def test_pass_without_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = change(write_training(tmp_path, "recommendation"), passes=[{"prune": {"ffn": 0.5}}], data=None)
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "must have 'data'; add it" in capsys.readouterr().err


def test_loss_that_is_no_number_is_refused(tmp_path: Path) -> None:
    given_model, material = material_of(write_training(tmp_path, "recommendation"))
    with torch.no_grad():
        given_model.model.encoder.layer[0].output.dense.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"passes\.prune: the loss on the training examples must be finite, is not"):
        prune.apply(given_model, prune.Config(ffn=0.5, round_to=8), material)


def test_few_examples_are_refused_however_many_windows_they_have(tmp_path: Path, trained: Any) -> None:
    recipe = trained("question_answering", tmp_path)
    write_examples(tmp_path / "train.json", "question_answering", 15, 0)
    given_model, material = material_of(recipe)
    assert len(material.features(given_model.tokenizer, 15)) > 16
    with pytest.raises(InputError, match="needs at least 16 training examples to see what matters, got 15"):
        prune.apply(given_model, prune.Config(ffn=0.5, round_to=8), material)
