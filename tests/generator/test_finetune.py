"""Every task is trained, written, built and evaluated from what was written; runs are determined by their seed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_encoders import FAMILIES
from tiny_training import FILES, LEARNT, LORA, SETTINGS, change, of_written, run, write_training
from tritonpress_generator import cli, repository
from tritonpress_generator import finetune as finetuning
from tritonpress_generator.evaluate import evaluate
from tritonpress_generator.finetune import Finetuned
from tritonpress_generator.recipe import load
from tritonpress_generator.token_states import token_states
from tritonpress_generator.trainable import set_dropout

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "question_answering": ("question_answering", {}),
    "question_answering_lora": ("question_answering", LORA),
    "classification": ("classification", LEARNT),
    "classification_lora": ("classification", LORA | LEARNT),
    "multi_label": ("classification", LEARNT | {"multi_label": True}),
    "multi_label_lora": ("classification", LORA | LEARNT | {"multi_label": True}),
    "recommendation": ("recommendation", {}),
    "recommendation_lora": ("recommendation", LORA),
}


def weights(folder: Path) -> bytes:
    (path,) = folder.glob("*.safetensors")
    return path.read_bytes()


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Intervals of fewer resamples than people are shown, for they take as long as a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "_RESAMPLES", 40)
        yield


@pytest.fixture(scope="module", params=CASES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Finetuned]:
    """A case, its recipe with what was trained as the checkpoint, and what the training returned."""
    task, settings = CASES[request.param]
    recipe = write_training(tmp_path_factory.mktemp(request.param), task, **settings)
    done = run(recipe)
    return request.param, of_written(recipe, settings), done


def test_loss_falls(trained: tuple[str, Path, Finetuned]) -> None:
    _, _, done = trained
    losses = done.progress.losses
    assert len(losses) == done.progress.step
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_evaluation_of_what_is_written_gives_the_scores_of_the_model_card(
    trained: tuple[str, Path, Finetuned],
) -> None:
    case, recipe, done = trained
    task = CASES[case][0]
    card = (recipe.parent / "out" / "README.md").read_text(encoding="utf-8")
    for name in (f"dev.{FILES[task]}", f"test.{FILES[task]}"):
        metrics = evaluate(recipe, "torch", dataset=recipe.parent / name)
        scores = done.scores[name]
        primary = next(iter(scores.values()))
        assert primary.low <= primary.value <= primary.high
        row = " | ".join(map(str, scores.values()))
        assert f"| {name} | {'validation' if name.startswith('dev') else 'test'} | {row} |" in card
        # Of a recommendation, pairs are scored while it is trained, and a catalogue when it is built.
        if task != "recommendation":
            assert {name: score.value for name, score in scores.items()} == pytest.approx(metrics, abs=1e-6)
    assert done.progress.best_metric is not None


def test_what_was_learnt_is_in_what_is_written(trained: tuple[str, Path, Finetuned]) -> None:
    case, _, done = trained
    if case.startswith("classification"):
        assert done.scores["test.tsv"]["accuracy"].value > 0.9
    if case.startswith("multi_label"):
        assert done.scores["test.tsv"]["mcc"].value > 0.1


def test_nothing_of_this_machine_is_in_what_is_written(trained: tuple[str, Path, Finetuned]) -> None:
    case, recipe, _ = trained
    files = [path for path in (recipe.parent / "out").iterdir() if path.is_file()]
    assert {path.name for path in files} == {"README.md", "config.json", "tritonpress.json"} | (
        {"adapter_config.json", "adapter_model.safetensors"}
        if "lora" in CASES[case][1]
        else {"model.safetensors", "tokenizer.json"}
    )
    for path in files:
        content = path.read_bytes()
        for trace in (str(recipe.parent), str(Path.home()) + "/", str(Path.cwd())):
            assert trace.encode() not in content, path


def test_model_card_says_what_was_trained_on_what(trained: tuple[str, Path, Finetuned]) -> None:
    _, recipe, done = trained
    card = (recipe.parent / "out" / "README.md").read_text(encoding="utf-8")
    written = yaml.safe_load(recipe.read_text())
    finetune_settings = written["finetune"]
    for use in ("train", "validation", "test"):
        (name,) = written["data"][use]
        digest = hashlib.sha256((recipe.parent / name).read_bytes()).hexdigest()
        assert f"| {name} | {use} | {digest[:16]}" in card
    settings = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert {name: settings[name] for name in SETTINGS} == {name: finetune_settings[name] for name in SETTINGS}
    assert f"step {done.progress.best_step} of {done.progress.step}" in card
    assert f"torch {torch.__version__}" in card
    assert "trained on ./checkpoint by" in card
    assert ("LoRA adapter" in card) == ("lora" in finetune_settings)


def test_tensorboard_holds_the_losses_and_the_metrics(trained: tuple[str, Path, Finetuned]) -> None:
    _, recipe, done = trained
    events = EventAccumulator(str(recipe.parent / "out" / "training" / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(done.progress.losses)
    for entry in done.progress.evaluations:
        for name in entry.keys() - {"step"}:
            values = {event.step: event.value for event in events.Scalars(f"validation/{name}")}
            assert values[int(entry["step"])] == pytest.approx(entry[name], rel=1e-6)


@pytest.mark.parametrize("trained", ["question_answering_lora", "classification"], indirect=True)
def test_what_is_written_is_built(trained: tuple[str, Path, Finetuned], tmp_path: Path) -> None:
    case, recipe, done = trained
    assert cli.main(["build", str(recipe), "--out", str(tmp_path)]) == 0
    manifest = repository.read_manifest(tmp_path, CASES[case][0])
    metric = manifest["gate"]["metric"]
    name = f"test.{FILES[CASES[case][0]]}"
    assert manifest["gate"]["baseline"] == pytest.approx(done.scores[name][metric].value, abs=1e-6)


@pytest.mark.parametrize("case", ["question_answering_lora", "recommendation"])
def test_the_seed_determines_the_run(case: str, tmp_path: Path) -> None:
    task, settings = CASES[case]
    runs = []
    for number, seed in enumerate((3, 3, 4)):
        recipe = write_training(tmp_path / str(number), task, **settings | {"seed": seed, "dropout": 0.2, "epochs": 1})
        torch.manual_seed(number)  # of no effect
        done = run(recipe)
        runs.append((done.progress.losses, done.scores, weights(done.folder)))
    assert runs[0] == runs[1]
    assert runs[0][0][0] != runs[2][0][0]
    assert runs[0][2] != runs[2][2]
    folders = [tmp_path / str(number) / "out" for number in (0, 1)]
    for name in ("adapter_config.json", "config.json", "tritonpress.json"):
        if (folders[0] / name).is_file():
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_products_may_be_computed_in_bf16(tmp_path: Path) -> None:
    full, half = (
        run(write_training(tmp_path / precision, "question_answering", precision=precision, epochs=2)).progress.losses
        for precision in ("fp32", "bf16")
    )
    assert full != half
    assert half[:3] == pytest.approx(full[:3], rel=0.05)
    assert np.mean(half[-3:]) < 0.9 * np.mean(half[:3])


@pytest.mark.parametrize("task", ["question_answering", "recommendation"])
def test_what_no_answer_depends_on_stays_as_it_is(task: str, tmp_path: Path) -> None:
    recipe = write_training(tmp_path, task, epochs=1)
    before = load_file(tmp_path / "checkpoint" / "model.safetensors")
    written = load_file(run(recipe).folder / "model.safetensors")
    after = {name.removeprefix("bert."): tensor for name, tensor in written.items()}
    changed = {name for name in after if name in before and not torch.equal(after[name], before[name])}
    assert changed == {name for name in before if "pooler" not in name}


def test_threshold_of_no_answer_is_chosen_written_and_counted_in_the_scores(tmp_path: Path) -> None:
    recipe = write_training(tmp_path, "question_answering", negatives=0.5, epochs=8)
    for name in ("dev.json", "test.json"):
        data = json.loads((tmp_path / name).read_text())
        for article in data["data"][::2]:
            for paragraph in article["paragraphs"]:
                paragraph["qas"][0] |= {"question": "the kitchen", "answers": [], "is_impossible": True}
        (tmp_path / name).write_text(json.dumps(data))
    done = run(recipe)
    threshold = json.loads((tmp_path / "out" / "tritonpress.json").read_text())["null_threshold"]
    assert f"null_threshold {threshold:.4f}" in (tmp_path / "out" / "README.md").read_text()
    of_written(recipe, {})
    scores = {name: score.value for name, score in done.scores["dev.json"].items()}
    assert scores == pytest.approx(evaluate(recipe, "torch", dataset=tmp_path / "dev.json"), abs=1e-6)
    # Answering with a span always, or never, is no better than at the threshold.
    for other in (-50.0, 50.0):
        change(recipe, task={"question_answering": load(recipe).task.config.model_dump() | {"null_threshold": other}})
        assert evaluate(recipe, "torch", dataset=tmp_path / "dev.json")["f1"] <= scores["f1"]
    # What decides on the way is the answers to what has one.
    assert done.progress.best_metric is not None
    assert done.progress.best_metric != pytest.approx(scores["f1"])


def test_recipes_own_threshold_and_temperature_are_those_of_the_scores(tmp_path: Path) -> None:
    recipe = write_training(tmp_path / "qa", "question_answering", epochs=1)
    settings = load(recipe).task.config.model_dump() | {"null_threshold": 0.25}
    done = run(change(recipe, task={"question_answering": settings}))
    metrics = evaluate(of_written(recipe, {}), "torch")
    assert {name: score.value for name, score in done.scores["test.json"].items()} == pytest.approx(metrics, abs=1e-6)
    recipe = write_training(tmp_path / "labels", "classification", epochs=1)
    done = run(change(recipe, task={"classification": {"temperature": 7.5}}))
    metrics = evaluate(of_written(recipe, {}), "torch")
    assert {name: score.value for name, score in done.scores["test.tsv"].items()} == pytest.approx(metrics, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_every_kind_is_set(family: str) -> None:
    config_class, values = FAMILIES[family]
    config = config_class(**values)
    for name, value in vars(config).items():
        if "dropout" in name and isinstance(value, int | float):
            setattr(config, name, 0.3)
    torch.manual_seed(0)
    model = hf.AutoModel.from_config(config).train()
    ids = torch.arange(5, 25).reshape(2, 10)

    def answers() -> list[torch.Tensor]:
        return [token_states(model, ids, torch.ones_like(ids)).detach() for _ in range(2)]

    first, second = answers()
    assert not torch.equal(first, second)
    set_dropout(model, 0.0)
    first, second = answers()
    assert torch.equal(first, second)


def test_command_trains_and_says_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_training(tmp_path / "recipe", "recommendation", epochs=1)
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "dev", "test"):
        shutil.move(tmp_path / "recipe" / f"{name}.jsonl", data)
    out = tmp_path / "out"
    assert cli.main(["finetune", str(recipe), "--out", str(out), "--data", str(data)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].split() == ["data", "mrr"]
    assert [line.split()[0] for line in said.out.splitlines()[2:]] == ["dev.jsonl", "test.jsonl", "wrote"]
    assert said.out.endswith(f"wrote {out}\n")
    assert "\r" not in said.err
    assert "training: 40 examples, 40 sequences, 22,336 weights, fp32" in said.err.splitlines()

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetuning, "finetune", interrupt)
    assert cli.main(["finetune", str(recipe), "--data", str(data)]) == 130
    assert "interrupted; the same command goes on from the last state" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(3))
def test_interval_of_a_mean_is_that_of_its_standard_error(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "_RESAMPLES", 1000)
    values = np.random.default_rng(seed).normal(size=400)
    (score,) = finetuning._with_intervals(lambda rows: {"mean": float(values[rows].mean())}, len(values)).values()
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert score.value == values.mean()
    assert (score.low, score.high) == pytest.approx((score.value - error, score.value + error), abs=0.15 * error)
