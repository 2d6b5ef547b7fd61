"""From recipe to repository, and what happens to the old repository when it goes wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from killed_work import victims_of
from tiny_sources import write_recipe
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import cli, export, repository
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import fuse, quantize
from tritonpress_generator.lengths import exact


@pytest.fixture
def sources(tiny_sources: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sources, tmp_path / "sources"))


@pytest.fixture
def model_repo(tiny_repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_repository, tmp_path / "model_repo"))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file but byte code and what keeps it away, which are no part of a build."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_repository_is_the_contract(tiny_repository: Path) -> None:
    ensemble = repository.read_config(tiny_repository / "recommendation")
    assert ensemble.platform == "ensemble"
    assert [(t.name, t.data_type, list(t.dims)) for t in ensemble.input] == [("QUERY", pb.TYPE_STRING, [1])]
    assert [(t.name, t.data_type, list(t.dims)) for t in ensemble.output] == [
        ("ITEM_ID", pb.TYPE_STRING, [10]),
        ("SCORE", pb.TYPE_FP32, [10]),
    ]
    steps = [step.model_name for step in ensemble.ensemble_scheduling.step]
    assert [step.rsplit("_", 1)[0] for step in steps] == [
        "recommendation_tokenizer",
        "recommendation_engine",
        "recommendation_postprocessing",
    ]
    engine = repository.read_config(tiny_repository / steps[1])
    assert engine.platform == "onnxruntime_onnx"
    assert engine.max_batch_size == 8
    assert engine.HasField("dynamic_batching")
    assert engine.version_policy.latest.num_versions == 1
    threads = int(engine.parameters["intra_op_thread_count"].string_value)
    cores = len(os.sched_getaffinity(0))
    assert 1 <= threads * engine.instance_group[0].count <= cores
    assert [sample.inputs["input_ids"].dims[0] for sample in engine.model_warmup] == [16, 48]
    assert (tiny_repository / steps[1] / "1" / "model.onnx").is_file()
    assert list((tiny_repository / "recommendation" / "1").iterdir()) != []


def test_manifest_records_what_was_built_from_what(tiny_repository: Path) -> None:
    manifest = repository.read_manifest(tiny_repository, "recommendation")
    for_people = json.loads((tiny_repository / "recommendation" / "manifest.json").read_text())
    (entry,) = for_people.pop("builds")
    assert (entry["build"], entry["state"]) == (manifest["build"], "served")
    assert manifest == for_people
    assert repository.changed_files(tiny_repository, manifest) == []
    written = {path for path in snapshot(tiny_repository) if not path.startswith("recommendation/")}
    assert set(manifest["files"]) == written
    assert len(manifest["checkpoint"]["sha256"]) == 64
    assert set(manifest["versions"]) >= {"torch", "transformers", "onnx", "onnxruntime", "nvidia-pytriton"}
    assert manifest["gate"]["served"] >= manifest["gate"]["limit"]
    assert len(manifest["golden"]["requests"]) == 12
    assert manifest["parity"]["max_absolute_error"] < 2e-5


def test_python_steps_import_nothing_of_ours(tiny_repository: Path) -> None:
    for path in tiny_repository.glob("*/1/*.py"):
        assert "tritonpress" not in path.read_text()


def test_building_again_changes_no_step(sources: Path, model_repo: Path) -> None:
    before = {path.name for path in model_repo.iterdir()}
    assert run("build", sources / "recipe.yaml", "--out", model_repo) == 0
    assert {path.name for path in model_repo.iterdir()} == before


def test_new_build_writes_the_steps_that_changed(sources: Path, model_repo: Path) -> None:
    before = {path.name for path in model_repo.iterdir()}
    assert run("build", write_recipe(sources, graph=["fuse"]), "--out", model_repo) == 0
    after = {path.name for path in model_repo.iterdir()}
    assert len(after) == len(before) + 1
    assert [name.rsplit("_", 1)[0] for name in after - before] == ["recommendation_engine"]
    assert repository.changed_files(model_repo, repository.read_manifest(model_repo, "recommendation")) == []


def test_what_served_stays_until_servers_have_followed_though_nothing_is_to_be_kept(
    sources: Path, model_repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = repository.read_manifest(model_repo, "recommendation")["build"]
    assert run("build", write_recipe(sources, graph=["fuse"]), "--out", model_repo, "--keep", "0") == 0
    assert f"recommendation: {old} stays for servers that have yet to follow; once they" in capsys.readouterr().out
    builds = json.loads((model_repo / "recommendation" / "manifest.json").read_text())["builds"]
    assert {entry["build"]: entry["state"] for entry in builds}[old] == "previous"
    assert run("promote", model_repo, "recommendation", builds[0]["build"], "--keep", "0") == 0
    assert [path.name for path in model_repo.glob("*/manifest.*.json")] == [f"manifest.{builds[0]['build']}.json"]
    assert len([*model_repo.iterdir()]) == 4


@pytest.mark.slow
def test_another_division_of_the_steps_replaces_all_of_them(sources: Path, model_repo: Path) -> None:
    serve = {"max_batch_size": 8, "max_length": 48, "lengths": "exact", "dynamic_batching": False}
    assert run("build", write_recipe(sources, serve=serve), "--out", model_repo, "--keep", "0") == 0
    build = repository.read_manifest(model_repo, "recommendation")["build"]
    assert run("promote", model_repo, "recommendation", build, "--keep", "0") == 0
    assert [path.name.rsplit("_", 1)[0] for path in sorted(model_repo.iterdir())] == [
        "recommendation",
        "recommendation_model",
    ]
    (requirements,) = model_repo.glob("*/1/requirements.txt")
    assert [line.partition("==")[0] for line in requirements.read_text().splitlines()] == [
        "numpy",
        "onnxruntime",
        "tokenizers",
    ]
    assert run("verify", model_repo) == 0


def test_two_workloads_share_a_repository(sources: Path, model_repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", write_recipe(sources, name="recommendation_shop"), "--out", model_repo) == 0
    assert repository.workloads(model_repo) == ["recommendation", "recommendation_shop"]
    assert run("verify", model_repo) == 0
    verified = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert verified == ["recommendation", "recommendation_shop"]


GATE = {"dataset": "queries.jsonl", "metric": "ndcg@10", "keep": 0.99, "confidence": "point"}


@pytest.mark.parametrize("broken", [fuse, quantize], ids=["fuse", "quantize"])
def test_failed_gate_ends_with_1_names_the_stage_and_writes_nothing(
    sources: Path,
    model_repo: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    broken: ModuleType,
) -> None:
    before = snapshot(model_repo)
    recipe = write_recipe(sources, gate=GATE)
    real, name = broken.apply, broken.__name__.rpartition(".")[2]
    monkeypatch.setattr(broken, "apply", lambda model, *others: _ruined(real(model, *others)))
    assert run("build", recipe, "--out", model_repo) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "gate: ndcg@10 must stay at or above" in error
    assert f"% less after fuse + quantize (first missed after {name}); nothing was written" in error
    assert snapshot(model_repo) == before


def test_export_is_gated_of_its_own(
    sources: Path, model_repo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(model_repo)
    real = exact.export
    monkeypatch.setattr(exact, "export", lambda *arguments: _ruined(real(*arguments)))
    monkeypatch.setattr(export, "check_parity", lambda *_: export.Parity(0.0, 0.0, ()))
    assert run("build", write_recipe(sources, gate=GATE), "--out", model_repo) == 1
    assert "% less after the export to ONNX; nothing was written" in capsys.readouterr().err.splitlines()[-1]
    assert snapshot(model_repo) == before


def _ruined(model: object) -> object:
    """Returns `model` with its weights in another order, as a broken pass would leave it."""
    import numpy as np
    from onnx import numpy_helper

    for tensor in model.graph.initializer:  # type: ignore[attr-defined]
        if tensor.name.endswith("word_embeddings.weight"):
            tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 7, axis=0), tensor.name))
    return model


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: (s / "recipe.yaml").write_text("name: x"), "is missing; add it"),
        (lambda s: write_recipe(s, checkpoint={"source": "./checkpoint", "sha256": "0" * 64}), "sha256 of the weights"),
        (lambda s: (s / "checkpoint" / "model.safetensors").write_bytes(b"x"), "cannot be loaded"),
        (lambda s: (s / "checkpoint" / "model.safetensors").unlink(), "no *.safetensors"),
        (lambda s: (s / "catalogue.jsonl").write_text((s / "catalogue.jsonl").read_text() * 2), "must be unique"),
        (lambda s: (s / "queries.jsonl").unlink(), "cannot be read"),
        (lambda s: write_recipe(s, serve={"max_length": 65}), "serve.max_length must be at most 64"),
        (
            lambda s: write_recipe(s, task={"recommendation": {"catalogue": "catalogue.jsonl", "top_k": 65}}),
            "top_k must be at most",
        ),
    ],
)  # fmt: skip
def test_bad_input_ends_with_2_one_line_and_the_old_repository(
    sources: Path, model_repo: Path, capsys: pytest.CaptureFixture[str], spoil: object, message: str
) -> None:
    before = snapshot(model_repo)
    spoil(sources)  # type: ignore[operator]
    assert run("build", sources / "recipe.yaml", "--out", model_repo) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("tritonpress build: ")
    assert message in error
    assert snapshot(model_repo) == before


def test_repository_that_is_a_file_is_refused(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = sources / "file"
    target.write_text("mine")
    assert run("build", sources / "recipe.yaml", "--out", target) == 2
    assert "must be a folder that can be written" in capsys.readouterr().err
    assert target.read_text() == "mine"


WRITTEN = """
import shutil, sys
from pathlib import Path
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import repository
def prepare(victim):
    shutil.copytree(sys.argv[3], victim)
def step(role):
    def write(folder):
        folder.mkdir(parents=True)
        (folder / "data").write_text("another " + role)
    return repository.Step(role, pb.ModelConfig(backend="python", max_batch_size=8), write)
def ensemble(names):
    config = pb.ModelConfig(platform="ensemble", max_batch_size=8)
    for name in names.values():
        config.ensemble_scheduling.step.add(model_name=name, model_version=-1)
    return config
def work(victim):
    steps = [step(role) for role in ("tokenizer", "engine", "postprocessing")]
    manifest = {"workload": "recommendation", "golden": {}}
    repository.write(Path(victim), "recommendation", steps, ensemble, manifest)
"""


def test_writing_killed_at_any_moment_leaves_a_whole_repository(model_repo: Path, sources: Path) -> None:
    """Kills the writing of another build at each touch of the file system in turn, until it is let through."""
    old = repository.read_manifest(model_repo, "recommendation")["build"]
    builds = []
    for victim in victims_of(WRITTEN, model_repo.with_name("victim"), str(model_repo), step=4):
        manifest = repository.read_manifest(victim, "recommendation")
        assert repository.changed_files(victim, manifest) == []
        builds.append(manifest["build"])
    assert len(builds) > 10
    assert builds[0] == old
    assert builds[-1] != old
    assert len(set(builds)) == 2
    # What a kill leaves behind disturbs nothing: the next build goes through, and cleans up.
    assert run("build", sources / "recipe.yaml", "--out", model_repo.with_name("victim-8")) == 0
    left = set(snapshot(model_repo.with_name("victim-8")))
    assert left == set(snapshot(model_repo))


def test_zero_batch_size_is_written_out() -> None:
    assert repository.config_text(pb.ModelConfig(name="x")).startswith("max_batch_size: 0\n")


def test_repository_without_workload_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has none; run tritonpress build"):
        repository.workloads(tmp_path)
    assert run("verify", tmp_path) == 2


def test_changed_file_fails_verification(model_repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = repository.read_manifest(model_repo, "recommendation")
    file = next(name for name in manifest["files"] if name.endswith("items.json"))
    (model_repo / file).write_text("{}")
    assert run("verify", model_repo) == 1
    assert f"{file} has changed" in capsys.readouterr().err


@pytest.mark.slow
def test_building_again_mends_a_changed_file(sources: Path, model_repo: Path) -> None:
    manifest = repository.read_manifest(model_repo, "recommendation")
    file = next(name for name in manifest["files"] if name.endswith("model.onnx"))
    (model_repo / file).write_bytes(b"")
    assert run("build", sources / "recipe.yaml", "--out", model_repo) == 0
    assert run("verify", model_repo) == 0


def test_verification_replays_the_golden_requests(model_repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", model_repo) == 0
    assert "recommendation: 72 answers" in capsys.readouterr().out


def test_verification_fails_on_another_answer(model_repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = repository.read_manifest(model_repo, "recommendation")
    manifest["golden"]["requests"][5]["outputs"]["ITEM_ID"].reverse()
    path = model_repo / "recommendation" / f"manifest.{manifest['build']}.json"
    path.write_text(json.dumps(manifest))
    assert run("verify", model_repo) == 1
    assert "build it again" in capsys.readouterr().err


def test_recipe_in_manifest_is_the_file(tiny_sources: Path, tiny_repository: Path) -> None:
    recipe = yaml.safe_load(repository.read_manifest(tiny_repository, "recommendation")["recipe"])
    assert recipe == yaml.safe_load((tiny_sources / "recipe.yaml").read_text())
