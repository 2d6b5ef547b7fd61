"""Layers, vocabulary, positions and segments are cropped; what is left answers as it must, and is served."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders as tiny
import torch
from at_once import AT_ONCE
from tiny_sources import TASKS, write_task
from tiny_training import FILES, change, material_of, write_training
from tokenizers import Tokenizer
from tritonpress_generator import cli, repository
from tritonpress_generator.compression import Compressed
from tritonpress_generator.errors import InputError
from tritonpress_generator.passes import crop
from tritonpress_generator.structure import depth, keep_layers
from tritonpress_server import TritonServer


def answer(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        states: torch.Tensor = model(ids, torch.ones_like(ids))
    return states


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layers_are_taken_out_and_put_back(family: str) -> None:
    model = tiny.make(family, "own")
    ids = torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    whole = answer(model, ids)
    put_back = keep_layers(model.encoder, [1])
    assert depth(model.encoder) == 1
    upper = answer(model, ids)
    put_back()
    assert torch.equal(answer(model, ids), whole)
    keep_layers(model.encoder, [0])
    lower = answer(model, ids)
    assert not torch.allclose(lower, whole, atol=1e-4)
    # Layers that share their weights are one layer, whichever is taken.
    assert torch.allclose(lower, upper, atol=1e-6) == (family == "albert")


def test_layer_without_which_the_loss_is_the_lowest_goes(trained_task: tuple[str, Path]) -> None:
    given, material = material_of(trained_task[1])
    result = crop.apply(given, crop.Config(layers=1), material)
    (left,) = result.report["crop"]["layers"]
    features = material.features(given.tokenizer, 256, as_served=True)
    losses = []
    for layer in (0, 1):
        model = copy.deepcopy(given.model)
        keep_layers(model, [layer])
        head, _ = material.head(model)
        with torch.inference_mode():
            losses.append(sum(float(material.losses(head, b).sum()) for b in material.batches(features, 32)))
    assert left == losses.index(min(losses))
    assert depth(given.model) == 2


def test_vocabulary_of_the_examples_leaves_their_answers(trained_task: tuple[str, Path]) -> None:
    given, material = material_of(trained_task[1])
    result = crop.apply(given, crop.Config(vocabulary=crop.VocabularyConfig()), material)
    rows = result.model.get_input_embeddings().num_embeddings
    assert rows == result.tokenizer.get_vocab_size() == result.report["crop"]["vocabulary"]
    assert rows < given.tokenizer.get_vocab_size()
    assert result.size_bytes < given.size_bytes
    infers = []
    for compressed in (given, result):
        head, signature = material.head(compressed.model)
        features = material.features(compressed.tokenizer, 10)
        batch = next(material.batches(features, 10))
        inputs = [batch[name] for name in signature.inputs]
        with torch.inference_mode():
            outputs = head(*inputs)
        infers.append(outputs if isinstance(outputs, tuple) else (outputs,))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*infers, strict=True))


@pytest.mark.parametrize("family", ["roberta", "bert", "mpnet", "distilbert", "electra"])
def test_positions_and_segments_of_a_family(family: str, tmp_path: Path) -> None:
    path = write_training(tmp_path, "recommendation")
    given, material = material_of(change(path, serve={"max_length": 24}))
    encoder = tiny.make(family, "own").encoder
    ids = torch.randint(5, 90, (2, 24), generator=torch.Generator().manual_seed(0))
    before = encoder(ids, torch.ones_like(ids)).last_hidden_state
    fields: dict[str, Any] = {"positions": 30} | ({"one_segment": True} if family in {"bert", "electra"} else {})
    result = crop.apply(Compressed(encoder, given.tokenizer), crop.Config(**fields), material)
    after = result.model(ids, torch.ones_like(ids)).last_hidden_state
    assert torch.allclose(before, after, atol=1e-6)
    assert result.size_bytes < Compressed(encoder, given.tokenizer).size_bytes


def test_padding_that_positions_are_counted_from_stays(tmp_path: Path) -> None:
    given, material = material_of(write_training(tmp_path, "recommendation"))
    encoder = tiny.make("roberta", "own").encoder
    result = crop.apply(
        Compressed(encoder, given.tokenizer), crop.Config(vocabulary=crop.VocabularyConfig(most=3)), material
    )
    table = result.model.embeddings.word_embeddings
    assert table.padding_idx == result.model.config.pad_token_id == 1
    assert torch.equal(table.weight[:2], encoder.embeddings.word_embeddings.weight[:2])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layers": 3}, r"layers must be from 1 to 2 \(the model's\), got 3"),
        ({"layers": 0}, r"layers must be from 1 to 2"),
        ({"layers": [1, 0]}, r"layers must be ascending and from 0 to 1 \(the model's\), got \[1, 0\]"),
        ({"layers": []}, "layers must be ascending"),
        ({"layers": [0, 2]}, "layers must be ascending and from 0 to 1"),
        ({"positions": 40}, r"positions must be from 48 \(serve.max_length\) to 64 \(the model's\), got 40"),
        ({"positions": 65}, "positions must be from 48"),
        ({"vocabulary": {"corpus": ["none.txt"]}}, "none.txt"),
    ],
)
def test_wrong_sizes_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    given, material = material_of(write_training(tmp_path, "recommendation"))
    with pytest.raises(InputError, match=message):
        crop.apply(given, crop.Config(**config), material)


def test_segments_of_a_pair_are_kept(trained_task: tuple[str, Path]) -> None:
    given, material = material_of(trained_task[1])
    if trained_task[0] == "question_answering":
        with pytest.raises(InputError, match="one_segment: question_answering reads QUESTION and CONTEXT as two"):
            crop.apply(given, crop.Config(one_segment=True), material)
    else:
        assert crop.apply(given, crop.Config(one_segment=True), material).model.config.type_vocab_size == 1


def test_vocabulary_needs_texts(tmp_path: Path) -> None:
    given, material = material_of(change(write_training(tmp_path, "recommendation"), data=None))
    with pytest.raises(InputError, match="vocabulary: needs texts, got none; add 'data' or"):
        crop.apply(given, crop.Config(vocabulary=crop.VocabularyConfig()), material)
    (tmp_path / "corpus.txt").write_text("a red lamp for the garden\n")
    config = crop.Config(vocabulary=crop.VocabularyConfig(corpus=["corpus.txt"]))
    tokenizer = crop.apply(given, config, material).tokenizer
    assert tokenizer.encode("the lamp").tokens == given.tokenizer.encode("the lamp").tokens


def test_vocabulary_of_many_texts_is_counted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, material = material_of(write_training(tmp_path, "recommendation"))
    (tmp_path / "corpus.txt").write_text("a red lamp\nfor the garden\n" * 50)
    config = crop.Config(vocabulary=crop.VocabularyConfig(corpus=["corpus.txt"], min_count=3))
    whole = crop.apply(given, config, material).tokenizer.get_vocab()
    monkeypatch.setattr(crop, "_AT_ONCE", 7)
    assert crop.apply(given, config, material).tokenizer.get_vocab() == whole


def test_vocabulary_has_all_of_a_text_that_is_longer_than_what_is_trained_on(
    trained_task: tuple[str, Path], tmp_path: Path
) -> None:
    task, recipe = trained_task[0], Path(shutil.copytree(trained_task[1].parent, tmp_path / "sources")) / "recipe.yaml"
    long = " ".join(["the red lamp"] * 8) + " for the garden"
    path = recipe.with_name(f"train.{FILES[task]}")
    if task == "question_answering":
        data = json.loads(path.read_text())
        data["data"][0]["paragraphs"][0]["context"] += f" {long}"
        path.write_text(json.dumps(data))
    else:
        row = f"{long}\tage" if task == "classification" else json.dumps({"query": long, "relevant": {"T-001": 1}})
        path.write_text(f"{path.read_text()}{row}\n")
    given, material = material_of(change(recipe, finetune={"max_length": 24}))
    tokenizer = crop.apply(given, crop.Config(vocabulary=crop.VocabularyConfig()), material).tokenizer
    assert tokenizer.encode(long).tokens == given.tokenizer.encode(long).tokens
    assert tokenizer.token_to_id("kitchen") is None


@pytest.mark.parametrize("task", ["classification", "recommendation"])
def test_vocabulary_has_all_of_a_line_that_is_longer_than_what_is_served(task: str, tmp_path: Path) -> None:
    recipe = change(write_task(tmp_path, task) if task in TASKS else write_training(tmp_path, task), data=None)
    given, material = material_of(recipe)
    (tmp_path / "corpus.txt").write_text("the red lamp " * 20 + "for the garden\n")
    config = crop.Config(vocabulary=crop.VocabularyConfig(corpus=["corpus.txt"]))
    tokenizer = crop.apply(given, config, material).tokenizer
    assert tokenizer.encode("the garden").tokens == given.tokenizer.encode("the garden").tokens


def test_nothing_to_crop_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = change(write_training(tmp_path, "recommendation"), passes=["crop"])
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "give layers, vocabulary, positions or one_segment" in capsys.readouterr().err


@pytest.mark.parametrize("task", [pytest.param("question_answering", marks=pytest.mark.slow), "recommendation"])
def test_build_serves_the_cropped_model_with_its_tokenizer(task: str, tmp_path: Path, trained: Any) -> None:
    recipe = trained(task, tmp_path)
    passes = [{"crop": {"layers": [0], "vocabulary": {}, "positions": 48}}, {"prune": {"ffn": 0.25, "round_to": 8}}]
    change(
        recipe,
        passes=passes,
        graph=["fuse", "quantize"],
        serve={"steps": "single" if task == "question_answering" else "ensemble"},
    )
    out = tmp_path / "out"
    assert cli.main(["build", str(recipe), "--out", str(out)]) == 0
    manifest = repository.read_manifest(out, task)
    assert [stage["stage"] for stage in manifest["stages"]][:3] == ["torch FP32", "crop", "prune"]
    tokenizers = list(out.rglob("tokenizer.json"))
    assert {Tokenizer.from_file(str(path)).get_vocab_size() for path in tokenizers} == {
        manifest["passes"]["crop"]["vocabulary"]
    }
    assert cli.main(["verify", str(out)]) == 0
    with TritonServer(out, settings=AT_ONCE) as server:
        assert cli.main(["evaluate", str(recipe), "--target", server.grpc_url, "--repository", str(out)]) == 0


def test_loss_that_is_no_number_is_refused(tmp_path: Path) -> None:
    given, material = material_of(write_training(tmp_path, "recommendation"))
    with torch.no_grad():
        given.model.encoder.layer[0].output.dense.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"passes\.crop: the loss on the training examples must be finite, is not"):
        crop.apply(given, crop.Config(layers=1), material)
