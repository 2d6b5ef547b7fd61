"""Distillation: what is learnt is what the original computes, and what the passes have broken is mended."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import change, material_of, write_training
from tritonpress_generator import cli, repository
from tritonpress_generator.compression import copied
from tritonpress_generator.errors import InputError
from tritonpress_generator.examples import collate
from tritonpress_generator.passes import crop, distill, prune
from tritonpress_generator.training import classification, loop, question_answering, recommendation
from tritonpress_generator.training.distances import divergence
from tritonpress_generator.training.distributed import ALONE

QUICK: dict[str, Any] = {"epochs": 4, "batch_size": 8, "learning_rate": 2e-3, "precision": "fp32", "evaluations": 2}
TOO_HIGH: dict[str, Any] = {"epochs": 1, "learning_rate": 1.0}
"""Of the rates, one that leaves nothing of what was learnt, and numbers."""


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 2**31 - 1))
def test_divergence_is_that_of_kullback_and_leibler(rows: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (torch.randn(rows, width, generator=generator) * 3 for _ in range(2))
    expected = torch.nn.functional.kl_div(
        ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    assert torch.allclose(divergence(ours, theirs), expected, atol=1e-5)
    assert torch.allclose(divergence(theirs, theirs), torch.zeros(rows), atol=1e-6)


def test_what_is_impossible_counts_nothing_and_has_no_gradient() -> None:
    ours = torch.tensor([[1.0, 2.0, float("-inf")]], requires_grad=True)
    theirs = torch.tensor([[2.0, 1.0, float("-inf")]])
    found = divergence(ours, theirs)
    assert torch.allclose(found, divergence(ours[:, :2], theirs[:, :2]))
    found.sum().backward()
    assert ours.grad is not None
    assert torch.isfinite(ours.grad).all()


def test_relations_and_similarities_are_in_fp32_where_products_are_in_bf16() -> None:
    generator = torch.Generator().manual_seed(0)
    states, mask = torch.randn(2, 5, 24, generator=generator), torch.ones(2, 5, dtype=torch.int64)
    batch = {"item": torch.arange(3), "temperature": torch.full((3,), 0.05)}
    vectors = torch.nn.functional.normalize(torch.randn(6, 24, generator=generator))
    compute: list[Callable[[], torch.Tensor]] = [
        lambda: distill._relations(states, 3, mask),
        lambda: recommendation.losses((vectors,), batch, ALONE),
    ]
    for one in compute:
        wanted = one()
        with torch.autocast("cpu", torch.bfloat16):
            got = one()
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distances_are_0_at_the_original_and_positive_elsewhere(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    one = {"labels": torch.tensor([0, 1])}
    several = {"labels": torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])}
    cases: list[tuple[Any, Any, dict[str, torch.Tensor]]] = [
        (classification, ((drawn(2, 3),), (drawn(2, 3),)), one),
        (classification, ((drawn(2, 3),), (drawn(2, 3),)), several),
        (question_answering, ((drawn(2, 7), drawn(2, 7)), (drawn(2, 7), drawn(2, 7))), {}),
        (recommendation, ((drawn(4, 5),), (drawn(4, 5),)), {}),
    ]
    for module, (ours, theirs), batch in cases:
        apart = module.distances(ours, theirs, batch, temperature)
        assert apart.shape == (2,)
        assert (apart > 1e-3).all()
        same = module.distances(theirs, theirs, batch, temperature)
        assert torch.allclose(same, torch.zeros(2), atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "modernbert", "albert", "eurobert", "deberta-v2", "deberta-v3", "mpnet"])
def test_original_has_nothing_to_learn(family: str, tmp_path: Path) -> None:
    _, material = material_of(write_training(tmp_path, "recommendation"))
    encoder = tiny.make(family, "own").encoder
    original = replace(material.original, model=encoder)
    material = replace(material, original=original)
    config = distill.Config(relations=1.0, **QUICK)
    for student, nothing in ((copy.deepcopy(encoder), True), (tiny.make(family, "own").encoder, False)):
        if not nothing:
            with torch.no_grad():
                for parameter in student.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        head, _ = material.head(student)
        teacher, _ = material.head(encoder)
        lesson = distill._Lesson(config, replace(original, model=student), head, teacher, material)
        batch = collate(material.features(material.original.tokenizer, 6))
        with torch.no_grad():
            losses = lesson.losses(head, batch, ALONE)
        assert losses.shape == (6,)
        assert torch.allclose(losses, torch.zeros(6), atol=1e-5) if nothing else bool((losses > 1e-3).all())


def test_nothing_of_an_evaluation_is_kept(tmp_path: Path) -> None:
    original, material = material_of(write_training(tmp_path, "recommendation"))
    student = copied(original)
    head, _ = material.head(student.model)
    teacher, _ = material.head(original.model)
    lesson = distill._Lesson(distill.Config(relations=1.0, **QUICK), student, head, teacher, material)
    batch = collate(material.features(original.tokenizer, 6))
    answered: list[weakref.ref[torch.Tensor]] = []

    def note(_: Any, __: Any, answer: Any) -> None:
        answered.append(weakref.ref(answer[0] if isinstance(answer, tuple) else answer))

    for part in head.modules():
        if isinstance(part, torch.nn.Linear) or part in [*student.model.encoder.layer]:
            part.register_forward_hook(note)
    with torch.no_grad():
        lesson.losses(head, batch, ALONE)
        head(batch["input_ids"], batch["attention_mask"])
    assert len(answered) > 20
    assert not [answer for answer in answered if answer() is not None]


def test_result_is_not_watched(tmp_path: Path) -> None:
    """Nor is that of adapters as the first pass, of which the model that is learnt from is a part."""
    original, material = material_of(write_training(tmp_path, "recommendation"))
    for lora in (None, {"rank": 2, "alpha": 4}):
        done = distill.apply(original, distill.Config.model_validate(QUICK | {"lora": lora, "epochs": 1}), material)
        for model in (done.model, original.model):
            assert not [part for part in model.modules() if part._forward_hooks or part._forward_pre_hooks]


def test_labels_are_learnt_beside_the_items_of_the_original(tmp_path: Path, trained: Any) -> None:
    """What is the original turned round has all of its labels, and is compared with items that were not turned."""
    original, material = material_of(trained("recommendation", tmp_path))
    head, _ = material.head(copy.deepcopy(original.model))
    teacher, _ = material.head(original.model)
    config = distill.Config(outputs=0.0, hidden=0.0, labels=1.0, **QUICK)
    lesson = distill._Lesson(config, original, head, teacher, material)
    batch = collate(material.features(original.tokenizer, 24))
    turn, _ = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        own = lesson.losses(head, batch, ALONE)
        other = lesson.losses(lambda *inputs: head(*inputs) @ turn, batch, ALONE)
    assert other.mean() > own.mean() + 1


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_what_was_cut_is_nearer_to_the_original_afterwards(trained_task: tuple[str, Path], lora: Any) -> None:
    original, material = material_of(trained_task[1])
    cut = crop.apply(original, crop.Config(layers=1, vocabulary=crop.VocabularyConfig()), material)
    cut = prune.apply(cut, prune.Config(ffn=0.5, round_to=8, reconstruct=False), material)
    before = {name: tensor.clone() for name, tensor in cut.model.state_dict().items()}
    # A rate at which the metric of a few examples stays, so that it is not what came in that is given back.
    how = {**QUICK, "lora": lora, "relations": 0.5, "learning_rate": 2e-4}
    done = distill.apply(cut, distill.Config.model_validate(how), material)
    assert not done.report["distill"]["given_back"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in cut.model.state_dict().items())
    assert {name: tensor.shape for name, tensor in done.model.state_dict().items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    assert done.report["prune"] == cut.report["prune"]
    features = material.features(cut.tokenizer, 24)
    apart = []
    for compressed in (cut, done):
        head, _ = material.head(compressed.model)
        teacher, _ = material.head(material.original.model)
        lesson = distill._Lesson(distill.Config(hidden=0.0, **QUICK), compressed, head, teacher, material)
        with torch.no_grad():
            apart.append(float(lesson.losses(head, collate(features), ALONE).mean()))
    assert apart[1] < apart[0]


def test_killed_training_goes_on(
    trained_task: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, material = material_of(trained_task[1], tmp_path / "work")
    cut = prune.apply(original, prune.Config(ffn=0.5, round_to=8), material)
    config = distill.Config(**QUICK)
    whole = distill.apply(cut, config, replace(material, work=None)).model.state_dict()
    steps = []
    step = loop._step

    def killed(*arguments: Any) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 15:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        distill.apply(cut, config, material)
    done = len(steps)
    again = distill.apply(cut, config, material).model.state_dict()
    assert len(steps) < 2 * done + 20
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    # What is finished is not trained again, and other settings are another training.
    monkeypatch.setattr(loop, "_step", lambda *_: pytest.fail("was trained"))
    assert all(torch.equal(whole[n], t) for n, t in distill.apply(cut, config, material).model.state_dict().items())
    assert len(list((tmp_path / "work").iterdir())) == 1


@pytest.mark.parametrize("how", [{}, {"lora": {"rank": 2, "alpha": 4}}, {"fake_quantize": 7}])
def test_what_came_in_is_given_back_where_training_makes_it_worse(
    tmp_path: Path, trained: Any, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    original, material = material_of(trained("recommendation", tmp_path), tmp_path / "work")
    cut = prune.apply(original, prune.Config(ffn=0.25, round_to=8), material)
    config = distill.Config.model_validate({**QUICK, **TOO_HIGH, **how})
    done = distill.apply(cut, config, material)
    report = done.report["distill"]
    assert report["after"] < report["before"]
    assert report["given_back"]
    assert "that is less, and what came in is given back" in distill.summary(report)
    before = cut.model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in done.model.state_dict().items())
    # So it is where the training is found done.
    monkeypatch.setattr(loop, "_step", lambda *_: pytest.fail("was trained"))
    again = distill.apply(cut, config, material)
    assert again.report == done.report
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.model.state_dict().items())


def test_learning_rate_that_is_too_high_is_named_as_the_recipe_does(tmp_path: Path) -> None:
    original, material = material_of(write_training(tmp_path, "recommendation"))
    too_high = QUICK | {"learning_rate": 1e30, "evaluations": 1}
    message = r"^passes\.distill: the loss must be finite, is nan at step \d; lower passes\.distill\.learning_rate$"
    with pytest.raises(InputError, match=message):
        distill.apply(original, distill.Config(**too_high), material)


def test_nothing_to_learn_from_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = change(write_training(tmp_path, "recommendation"), passes=[{"distill": {"outputs": 0, "hidden": 0}}])
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "must learn from outputs, hidden, relations or labels" in capsys.readouterr().err


@pytest.mark.slow
def test_build_mends_and_serves(tmp_path: Path, trained: Any) -> None:
    task = "recommendation"
    recipe = trained(task, tmp_path)
    change(recipe, passes=[{"prune": {"ffn": 0.5, "heads": 0.25, "round_to": 8}}, {"distill": QUICK}])
    out, work = tmp_path / "out", tmp_path / "work"
    assert cli.main(["build", str(recipe), "--out", str(out), "--work", str(work)]) == 0
    manifest = repository.read_manifest(out, task)
    assert [stage["stage"] for stage in manifest["stages"]][:4] == ["torch FP32", "prune", "distill", "ONNX FP32"]
    assert json.loads(json.dumps(manifest["passes"]["distill"]))["steps"] > 10
    assert cli.main(["verify", str(out)]) == 0


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_a_build_finds_it_done(
    tmp_path: Path, trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = trained("classification", tmp_path)
    change(recipe, passes=[{"prune": {"ffn": 0.5, "round_to": 8}}, {"distill": QUICK | {"dropout": 0.0, "epochs": 2}}])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command += ["tritonpress", "distill", str(recipe), "--work", str(tmp_path / "two")]
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": "lo",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("on the held-out examples") == 1
    assert cli.main(["distill", str(recipe), "--work", str(tmp_path / "one")]) == 0
    assert done.stdout.splitlines()[0].partition(" steps")[0] == capsys.readouterr().out.partition(" steps")[0]
    one, two = (torch.load(next((tmp_path / name).glob("*/state.pt")), weights_only=True) for name in ("one", "two"))
    assert one["progress"]["losses"] == pytest.approx(two["progress"]["losses"], rel=1e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step", lambda *_: pytest.fail("was trained"))
        build = ["build", str(recipe), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "two")]
        assert cli.main(build) == 0
