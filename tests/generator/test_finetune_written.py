"""What is written of a training is whole, of its checkpoint, and refused where it is not."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny_training import LEARNT, LORA, change, material_of, of_written, run, write_training
from tokenizers import Tokenizer
from tritonpress_generator import cli, trainable, written
from tritonpress_generator import finetune as finetuning
from tritonpress_generator.errors import PlaceError
from tritonpress_generator.evaluate import evaluate
from tritonpress_generator.examples import answered
from tritonpress_generator.progress import Progress
from tritonpress_generator.recipe import load
from tritonpress_generator.training.distributed import ALONE
from tritonpress_generator.workload import Workload


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Intervals of fewer resamples than people are shown, for they take as long as a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "_RESAMPLES", 40)
        yield


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def drop(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return edit


def test_adapter_has_the_pooler_that_its_checkpoint_lacks(tmp_path: Path) -> None:
    recipe = write_training(tmp_path, "classification", **LORA | LEARNT)
    edit_weights(tmp_path / "checkpoint", drop("pooler"))
    done = run(recipe)
    assert done.scores["test.tsv"]["accuracy"].value > 0.7
    torch.manual_seed(7)  # of no effect: nothing that is read is made up
    metrics = evaluate(of_written(recipe, LORA), "torch")
    assert {name: score.value for name, score in done.scores["test.tsv"].items()} == pytest.approx(metrics, abs=1e-6)


@pytest.mark.parametrize("settings", [{}, LORA])
def test_head_for_other_labels_is_made_anew(tmp_path: Path, settings: dict[str, Any]) -> None:
    recipe = write_training(tmp_path, "classification", epochs=1, **settings)
    config = hf.AutoConfig.from_pretrained(tmp_path / "checkpoint", num_labels=5)
    hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint", config=config).save_pretrained(
        tmp_path / "checkpoint"
    )
    done = run(recipe)
    metrics = evaluate(of_written(recipe, settings), "torch")
    assert metrics["accuracy"] == done.scores["test.tsv"]["accuracy"].value
    assert hf.AutoConfig.from_pretrained(tmp_path / "out").id2label == {0: "age", 1: "shape"}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("classifier"), r"must have the task's head, classifier\.bias is missing; give one"),
        (drop("layer.1.attention.self.query.lora_A"), r"cannot be merged .*1 tensors are of one of them alone"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), r"cannot be merged .*1 tensors are of one of them alone"),
    ],
)
def test_adapter_that_is_not_whole_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, torch.Tensor]], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_training(tmp_path, "classification", epochs=1, **LORA)
    edit_weights(run(recipe).folder, edit)
    assert cli.main(["evaluate", str(of_written(recipe, LORA))]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("tritonpress evaluate: checkpoint")
    assert re.search(message, error)


@pytest.mark.parametrize("settings", [{}, LORA])
def test_pooling_of_the_checkpoint_is_that_of_what_is_written(tmp_path: Path, settings: dict[str, Any]) -> None:
    recipe = write_training(tmp_path, "recommendation", epochs=1, **settings)
    pooling = tmp_path / "checkpoint" / "1_Pooling" / "config.json"
    pooling.parent.mkdir()
    pooling.write_text('{"pooling_mode_cls_token": true}')
    run(recipe)
    kept = evaluate(of_written(recipe, settings), "torch")
    task = load(recipe).task.config.model_dump(exclude={"pooling"})
    assert evaluate(change(recipe, task={"recommendation": task | {"pooling": "cls"}}), "torch") == kept
    assert evaluate(change(recipe, task={"recommendation": task | {"pooling": "mean"}}), "torch") != kept


def test_pooling_of_an_earlier_checkpoint_goes(tmp_path: Path) -> None:
    recipe = write_training(tmp_path, "recommendation", epochs=1)
    earlier = tmp_path / "out" / "1_Pooling" / "config.json"
    for folder in (earlier.parent, tmp_path / "out" / "training"):
        folder.mkdir(parents=True)
    earlier.write_text('{"pooling_mode_cls_token": true}')
    run(recipe)
    assert not earlier.exists()


def test_written_tokenizer_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    run(write_training(tmp_path, "question_answering", epochs=1))
    own, source = (Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")) for name in ("out", "checkpoint"))
    assert own.to_str() == source.to_str()
    assert own.truncation is None


def test_absolute_source_is_written_by_its_name(tmp_path: Path) -> None:
    recipe = write_training(tmp_path, "classification", epochs=1, **LORA)
    run(change(recipe, checkpoint={"source": str(tmp_path / "checkpoint")}))
    for name in ("README.md", "adapter_config.json"):
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text()
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "checkpoint"


def test_what_is_chosen_is_chosen_for_the_weights_that_are_written(tmp_path: Path) -> None:
    """Adapters in FP8 are others than those that were trained."""
    lora = LORA | {"lora": {**LORA["lora"], "written": "fp8"}}
    recipe = write_training(tmp_path, "classification", **lora | LEARNT)
    run(recipe)
    chosen = json.loads((tmp_path / "out" / "tritonpress.json").read_text())
    loaded = load(of_written(recipe, lora))
    workload = Workload.load(loaded, Progress(shown=False))
    material = workload.material()
    examples = material.examples.held_out
    given = answered(workload.infer, workload.signature, examples, loaded, workload.tokenizer, ALONE)
    assert loaded.finetune.module.chosen(examples, given, loaded, material.settings) == pytest.approx(chosen, rel=1e-6)


@pytest.mark.parametrize("settings", [{}, LORA])
def test_weights_may_be_read_by_whoever_may_read_the_rest(tmp_path: Path, settings: dict[str, Any]) -> None:
    run(write_training(tmp_path, "classification", epochs=1, **settings))
    modes = {path.suffix: path.stat().st_mode for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert modes[".safetensors"] == modes[".json"] == modes[".md"]


@pytest.mark.parametrize("settings", [{}, LORA])
def test_weights_for_which_there_is_no_room_are_a_line(tmp_path: Path, settings: dict[str, Any]) -> None:
    recipe = load(write_training(tmp_path, "recommendation", epochs=1, **settings))
    _, material = material_of(recipe.path)
    trained = trainable.load(recipe, material.checkpoint, material.settings, recipe.finetune.config)
    out = tmp_path / "out"
    out.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(PlaceError, match=r"out: weights cannot be written \(.*File too large.*\); make room"):
            written.write(out, trained, material.original.tokenizer, material.checkpoint, {}, precision="fp16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
