"""What was cut and learnt elsewhere is built again to the bit from masks and low-rank differences."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import change, write_training
from tritonpress_generator import cli, cuts, repository
from tritonpress_generator import recipe as recipes
from tritonpress_generator.compression import Compressed, copied
from tritonpress_generator.passes import crop, prune
from tritonpress_generator.progress import Progress
from tritonpress_generator.workload import Workload

LORA: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 2e-3, "lora": {"rank": 2, "alpha": 4}}
PASSES: list[dict[str, Any]] = [
    {"crop": {"layers": [0, 1], "vocabulary": {}, "positions": 50}},
    {"prune": {"heads": 0.25, "ffn": 0.5, "round_to": 8, "reconstruct": False}},
    {"distill": LORA},
]


@pytest.fixture(scope="module", params=["classification", pytest.param("question_answering", marks=pytest.mark.slow)])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, trained: Any) -> tuple[str, Path]:
    """Returns a task, and a recipe whose passes were distilled into the folder `small` beside it."""
    folder = tmp_path_factory.mktemp("restore")
    recipe = change(trained(request.param, folder), passes=PASSES)
    command = ["distill", str(recipe), "--work", str(folder / "work"), "--out", str(folder / "small")]
    assert cli.main(command) == 0
    return request.param, recipe


def restoring(recipe: Path, name: str = "restoring.yaml") -> Path:
    path = recipe.with_name(name)
    shutil.copy(recipe, path)
    return change(path, passes=[{"restore": {"folder": "small"}}], data=None)


def test_restored_build_is_the_build_of_the_passes(written: tuple[str, Path], tmp_path: Path) -> None:
    task, recipe = written
    work = str(recipe.parent / "work")
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "a"), "--work", work]) == 0
    assert cli.main(["build", str(restoring(recipe)), "--out", str(tmp_path / "b")]) == 0
    first, second = (repository.read_manifest(tmp_path / name, task) for name in "ab")
    models = [{path.name: path.read_bytes() for path in (tmp_path / name).rglob("model.onnx")} for name in ("a", "b")]
    assert models[0] == models[1] != {}
    assert first["stages"][-1]["metrics"] == second["stages"][-1]["metrics"]
    assert first["golden"]["requests"] == second["golden"]["requests"]
    assert second["passes"] == first["passes"]
    assert cli.main(["verify", str(tmp_path / "b")]) == 0


def test_what_was_given_back_is_restored(tmp_path: Path, trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The differences of a training that has made it worse are none."""
    lora = LORA | {"epochs": 1, "learning_rate": 1.0}
    recipe = change(trained("recommendation", tmp_path), passes=[PASSES[1], {"distill": lora}])
    small = tmp_path / "small"
    assert cli.main(["distill", str(recipe), "--work", str(tmp_path / "work"), "--out", str(small)]) == 0
    assert "that is less, and what came in is given back; lower passes.distill" in capsys.readouterr().out
    assert "That is less: the weights are those after the cuts" in (small / "README.md").read_text()
    found = []
    for passes in (PASSES[1:2], [{"restore": {"folder": "small"}}]):
        workload = Workload.load(recipes.load(change(recipe, passes=passes)), Progress(shown=False))
        *_, (_, compressed, _) = workload.passed(workload.material(), Progress(shown=False))
        found.append(compressed.model.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 0
    assert "distill: mrr on the held-out examples: " in capsys.readouterr().out


def test_what_travels_is_small(written: tuple[str, Path]) -> None:
    folder = written[1].parent / "small"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "config.json", "cuts.json",
    ]  # fmt: skip
    content = json.loads((folder / "cuts.json").read_text())
    assert [next(iter(cut)) for cut in content["cuts"]] == ["layers", "positions", "vocabulary", "heads", "ffn"]
    assert str(Path.home()) not in "".join(p.read_text() for p in folder.iterdir() if p.suffix != ".safetensors")


def test_what_was_restored_is_gone_on_with(
    written: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut further and trained further, the result is again of the checkpoint alone."""
    folder = Path(shutil.copytree(written[1].parent, tmp_path / "sources"))
    restored = {"restore": {"folder": "small"}}
    further = {"prune": {"ffn": 0.25, "round_to": 8, "reconstruct": False}}
    recipe = change(folder / "recipe.yaml", passes=[restored, {"distill": LORA | {"from_checkpoint": True}}])
    there = {path.name: path.read_bytes() for path in (folder / "small").iterdir()}
    assert cli.main(["distill", str(recipe), "--out", str(folder / "small")]) == 2
    assert f"--out {folder / 'small'} must be another folder than passes.restore's" in capsys.readouterr().err
    assert there == {path.name: path.read_bytes() for path in (folder / "small").iterdir()}
    restored["restore"]["folder"] = str(folder / "small")

    def weights(passes: list[Any]) -> tuple[Compressed, Any]:
        workload = Workload.load(recipes.load(change(recipe, passes=passes)), Progress(shown=False))
        *_, (_, compressed, _) = workload.passed(workload.material(), Progress(shown=False))
        return compressed, compressed.model.state_dict()

    # Hardly trained, of the same rank: only FP16 is between what was restored and what is written.
    (_, before), (_, begun) = (
        weights([restored, *more])
        for more in ([], [{"distill": LORA | {"epochs": 0.05, "learning_rate": 1e-9, "from_checkpoint": True}}])
    )
    assert all(torch.allclose(tensor, begun[name], atol=2e-4) for name, tensor in before.items())
    change(recipe, passes=[restored, further, {"distill": LORA | {"from_checkpoint": True}}])
    command = ["distill", str(recipe), "--work", str(folder / "work"), "--out", str(folder / "smaller")]
    assert cli.main(command) == 0
    adapter = hashlib.sha256((folder / "small" / "adapter_model.safetensors").read_bytes()).hexdigest()
    card = (folder / "smaller" / "README.md").read_text()
    assert f"| small | restored | {adapter[:16]}… |" in card
    assert str(tmp_path) not in card
    shutil.rmtree(folder / "small")
    compressed, _ = weights([{"restore": {"folder": "smaller"}}])
    assert [name for name, _ in compressed.cuts] == ["layers", "positions", "vocabulary", "heads", "ffn", "ffn"]


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40, unique=True).map(sorted), st.integers(1, 512))
def test_masks_come_back(kept: list[int], rows: int) -> None:
    done = cuts.written([("vocabulary", kept), ("ffn", [kept, kept]), ("positions", rows)])
    vocabulary, ffn, positions = (next(iter(cut.values())) for cut in json.loads(json.dumps(done)))
    for mask in (vocabulary, *ffn):
        assert all(cuts._places(mask, count) == kept for count in (kept[-1] + 1, 3001))
        with pytest.raises(ValueError, match=r"a mask must be of|must keep at least one of"):
            cuts._places(mask, kept[-1])
    assert positions == rows


def test_cuts_done_again_are_the_same_model(written: tuple[str, Path]) -> None:
    recipe = recipes.load(written[1])
    workload = Workload.load(recipe, Progress(shown=False))
    material = workload.material()
    cut: Compressed = material.original
    for module, stage in ((crop, recipe.passes[0]), (prune, recipe.passes[1])):
        cut = module.apply(cut, stage.config, material)
    again = cuts.again(copied(material.original), json.loads(json.dumps(cuts.written(cut.cuts))))
    first, second = cut.model.state_dict(), again.model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.tokenizer.to_str() == cut.tokenizer.to_str()
    assert again.original_ids == cut.original_ids


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ([{"prune": {"ffn": 0.5}}, {"distill": LORA}], "prune must leave the weights as they are for --out"),
        ([{"distill": LORA | {"lora": None}}], "the last must be distill with lora for --out"),
        ([{"distill": LORA}, {"crop": {"layers": 1}}], "the last must be distill with lora for --out, is crop"),
        ([{"crop": {"layers": 1}}], "passes: must have distill to be distilled"),
        (
            [{"restore": {"folder": "restored"}}, {"distill": LORA}],
            "restore must leave the weights as they are for --out",
        ),
        ([{"distill": LORA | {"lora": None, "from_checkpoint": True}}], "from_checkpoint is of adapters; give lora"),
    ],
)
def test_what_cannot_travel_is_refused_beforehand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], passes: list[Any], message: str
) -> None:
    recipe = change(write_training(tmp_path, "recommendation"), passes=passes)
    (tmp_path / "restored").mkdir()
    (tmp_path / "restored" / "cuts.json").write_text("{}")
    assert cli.main(["distill", str(recipe), "--out", str(tmp_path / "small")]) == 2
    (line,) = capsys.readouterr().err.splitlines()  # Before anything is loaded.
    assert message in line
    assert not (tmp_path / "small").exists()


def spoil_hash(content: dict[str, Any]) -> None:
    content["checkpoint"][0] = "0" * 64


def spoil_layers(content: dict[str, Any]) -> None:
    content["cuts"][0] = {"layers": {"bits": "/w=="}}


def spoil_positions(content: dict[str, Any]) -> None:
    (place,) = [place for place, cut in enumerate(content["cuts"]) if "positions" in cut]
    content["cuts"][place] = {"positions": 40}


def spoil_name(content: dict[str, Any]) -> None:
    content["cuts"][0] = {"legs": 3}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_hash, "must be of the recipe's checkpoint"),
        (spoil_layers, "the cut 'layers' does not fit a model of 2 layers"),
        (spoil_name, "the cut 'legs' does not fit a model"),
        (lambda content: content.pop("cuts"), "cuts.json cannot be read (cuts: field required)"),
        (spoil_positions, "serve.max_length must be at most 40 (the model's positions), got 48"),
    ],
)
def test_what_does_not_fit_is_refused(
    written: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    folder = Path(shutil.copytree(written[1].parent, tmp_path / "sources"))
    path = folder / "small" / "cuts.json"
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    assert cli.main(["build", str(restoring(folder / "recipe.yaml")), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_adapter_of_another_run_is_refused(
    written: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """As a kill leaves it, between the files of a second run."""
    folder = Path(shutil.copytree(written[1].parent, tmp_path / "sources"))
    path = folder / "small" / name
    content = bytearray(path.read_bytes())
    place = content.rindex(b"4", 0) if name.endswith("json") else len(content) - 1
    content[place] ^= 1
    path.write_bytes(content)
    assert cli.main(["build", str(restoring(folder / "recipe.yaml")), "--out", str(tmp_path / "out")]) == 2
    assert "must have the adapter that was written with its cuts.json, has another or" in capsys.readouterr().err


def test_endless_cuts_are_not_read(
    written: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(written[1].parent, tmp_path / "sources"))
    # Without a byte on the disk.
    os.truncate(folder / "small" / "cuts.json", 1 << 40)
    assert cli.main(["build", str(restoring(folder / "recipe.yaml")), "--out", str(tmp_path / "out")]) == 2
    assert "cuts.json cannot be read (OSError: has more than 16 MiB)" in capsys.readouterr().err


def test_folder_that_is_not_there(
    written: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = change(restoring(written[1], "none.yaml"), passes=[{"restore": {"folder": "nowhere"}}])
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "passes[0].restore: folder: " in line
    assert "nowhere must have the file cuts.json, has not; give a folder that tritonpress distill --out has" in line
