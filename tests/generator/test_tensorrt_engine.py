"""Without a GPU everything up to the plan is built, and what builds it lies beside it; the message says so."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tiny_encoders import asked, make, signature
from tiny_sources import write_task
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import cli, export, repository
from tritonpress_generator import recipe as recipes
from tritonpress_generator.engines import tensorrt as engine
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.plans import builder, pending
from tritonpress_generator.plans.profiles import Profile
from tritonpress_generator.progress import Progress
from tritonpress_generator.workload import Workload
from tritonpress_server import ModelRepositoryError, TritonServer

QDQ: list[object] = [{"qdq": {"calibration": "percentile"}}]


def recipe_for(folder: Path, task: str = "classification", **changes: object) -> Path:
    import yaml

    path = write_task(folder, task)
    recipe = yaml.safe_load(path.read_text())
    recipe |= {"engine": "tensorrt", "graph": QDQ, **changes}
    recipe["serve"] |= {"lengths": [16, 48]}
    recipe["serve"].pop("steps")
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tensorrt")
    recipe = recipe_for(folder / "sources" if (folder / "sources").mkdir() is None else folder)
    assert cli.main(["build", str(recipe), "--out", str(folder / "out")]) == 0
    return recipe, folder / "out"


@pytest.fixture
def copied(built: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    recipe, out = built
    return recipe, Path(shutil.copytree(out, tmp_path / "out"))


def version_folder(out: Path) -> Path:
    (folder,) = pending.folders(out, repository.read_manifest(out, "classification"))
    return folder


def with_plan(out: Path, **stamp: Any) -> Path:
    """Stands for what the builder leaves: files of no TensorRT, whose stamps are compared and which nothing loads."""
    plan = version_folder(out) / "model.plan"
    plan.write_bytes(b"not a plan")
    plan.with_name("model.plan.json").write_text(json.dumps({"tensorrt": "10.5.0.18", "release": "24.10", **stamp}))
    return plan


def test_build_says_that_the_plan_is_pending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", str(recipe_for(tmp_path)), "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    script = version_folder(tmp_path / "out") / "build_plan.sh"
    assert f"plan pending: on a machine with the GPU and Docker, run {script}" in output
    assert not list((tmp_path / "out").rglob("*.plan"))
    for rung in ("fp32", "fp16", "int8"):
        assert re.search(rf"^{rung} ", output, re.MULTILINE)


def test_all_that_builds_the_plan_lies_beside_it(built: tuple[Path, Path]) -> None:
    folder = version_folder(built[1])
    settings = json.loads((folder / "plan.json").read_text())
    assert [rung["name"] for rung in settings["rungs"]] == ["fp32", "fp16", "int8"]
    assert [rung["types"] for rung in settings["rungs"]] == [[], ["FLOAT16"], ["FLOAT16", "INT8"]]
    for rung in settings["rungs"]:
        graph = onnx.load(folder / rung["model"])
        onnx.checker.check_model(graph, full_check=True)
        assert [tensor.name for tensor in graph.graph.input] == settings["inputs"]
        assert {tensor.type.tensor_type.elem_type for tensor in graph.graph.input} == {TensorProto.INT32}
    assert [profile["length"] for profile in settings["profiles"]] == [[16] * 3, [48] * 3]
    assert [profile["batch"] for profile in settings["profiles"]] == [[1, 8, 8]] * 2
    assert (folder / "build_plan.py").read_bytes() == Path(str(builder.__file__)).read_bytes()
    script = folder / "build_plan.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    text = script.read_text()
    assert "nvcr.io/nvidia/tensorrt:24.10-py3" in text
    assert "nvcr.io/nvidia/tritonserver:24.10-py3" in text
    used = subprocess.run([str(script)], capture_output=True, text=True, check=False)
    assert used.returncode != 0
    assert "usage: build_plan.sh RECIPE" in used.stderr


def commands(folder: Path, *, gate: dict[str, int]) -> Path:
    """Returns a folder with a `docker` that builds nothing but files, and a `tritonpress` of the gate's verdicts."""
    folder.mkdir()
    verdicts = " ".join(f"{name}) exit {status};;" for name, status in gate.items())
    scripts = {
        "docker": """case "$*" in
            *build_plan.py*) for rung in fp16 int8; do
                echo "plan $rung" > "$PLAN/model.$rung.plan"; echo "{}" > "$PLAN/model.$rung.plan.json"; done
                printf "int8\\nfp16\\n" > "$PLAN/rungs.txt"; echo '{"compute_capability": "9.0"}' > "$PLAN/rungs.json";;
        esac""",
        "tritonpress": f"""case "$(cat "$PLAN"/model.plan "$PLAN"/model_9.0.plan 2>/dev/null | tail -1)" in
            {verdicts.replace("int8)", '"plan int8")').replace("fp16)", '"plan fp16")')}
        esac""",
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("gate", "status", "served"),
    [
        ({"int8": 0, "fp16": 0}, 0, "plan int8\n"),
        ({"int8": 1, "fp16": 0}, 0, "plan fp16\n"),
        ({"int8": 1, "fp16": 1}, 1, "old"),
        ({"int8": 2, "fp16": 0}, 2, "old"),
    ],
)
def test_script_serves_the_fastest_that_passes_the_gate_or_leaves_what_was_there(
    tmp_path: Path, several: bool, gate: dict[str, int], status: int, served: str
) -> None:
    capabilities = ["8.0", "9.0"] if several else []
    folder = tmp_path / "step" / "1"
    pending.write(folder, {}, {"compute_capabilities": capabilities}, release="24.10", workload="x", low=None)
    plan = folder / ("model_9.0.plan" if several else "model.plan")
    other = folder / "model_8.0.plan"
    for path in (plan, plan.with_name(f"{plan.name}.json"), other):
        path.write_text("old")
    path = f"{commands(tmp_path / 'bin', gate=gate)}:/usr/bin:/bin"
    environment = {"PATH": path, "PLAN": str(folder)}
    done = subprocess.run([folder / "build_plan.sh", "recipe.yaml"], env=environment, capture_output=True, check=False)
    assert done.returncode == status, done.stderr
    assert plan.read_text() == served
    assert plan.with_name(f"{plan.name}.json").read_text() == ("old" if served == "old" else "{}\n")
    assert other.read_text() == "old"
    assert not list(folder.glob("*.old"))


def test_config_is_what_the_native_backend_takes(built: tuple[Path, Path]) -> None:
    config = repository.read_config(version_folder(built[1]).parent)
    assert config.platform == "tensorrt_plan"
    (group,) = config.instance_group
    assert group.kind == pb.ModelInstanceGroup.KIND_GPU
    assert list(group.profile) == ["0", "1"]
    assert {tensor.data_type for tensor in config.input} == {pb.TYPE_INT32}
    assert {sample.name for sample in config.model_warmup} == {"16 tokens", "48 tokens"}
    specs = config.optimization.cuda.graph_spec
    covered = {
        (batch, spec.input["input_ids"].dim[0])
        for spec in specs
        for batch in range(spec.graph_lower_bound.batch_size, spec.batch_size + 1)
    }
    assert covered == {(batch, length) for batch in range(1, 9) for length in (16, 48)}
    steps = repository.read_config(built[1] / "classification").ensemble_scheduling.step
    assert len(steps) == 3


def test_question_answering_divides_its_windows_in_a_step_before_the_engine(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "question_answering", engine={"tensorrt": {"precision": "fp32"}}, graph=[])
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 0
    manifest = repository.read_manifest(tmp_path / "out", "question_answering")
    assert set(manifest["steps"]) == {"engine", "model"}
    (folder,) = pending.folders(tmp_path / "out", manifest)
    assert [path.name for path in sorted(folder.glob("*.onnx"))] == ["model.fp32.onnx"]


def test_rung_below_the_gate_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ruined = {"qdq": {"calibration": "percentile", "percentile": 50.1, "smooth": False}}
    recipe = recipe_for(tmp_path, graph=[ruined], gate={"dataset": "texts.tsv", "metric": "accuracy", "keep": 1.0})
    # What FP32 answers is right, so that every other answer counts.
    workload = Workload.load(recipes.load(recipe), Progress())
    labels = workload.answers(workload.baseline)["LABEL"][:, 0]
    rows = zip(workload.data.inputs["TEXT"], labels, strict=True)
    text = "".join(["text\tlabel\n", *(f"{text}\t{label.decode()}\n" for text, label in rows)])
    (tmp_path / "texts.tsv").write_text(text)
    status = cli.main(["build", str(recipe), "--out", str(tmp_path / "out")])
    assert status == 0
    output = capsys.readouterr().out
    assert re.search(r"refused int8: gate: accuracy must stay at or above", output)
    settings = json.loads((version_folder(tmp_path / "out") / "plan.json").read_text())
    assert "int8" not in [rung["name"] for rung in settings["rungs"]]


def test_verify_says_that_the_plan_is_pending(built: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for extra in ([], ["--server", "24.10"]):
        assert cli.main(["verify", str(built[1]), *extra]) == 2
        assert "classification: its plan is pending; run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stamp", "release", "status", "message"),
    [
        ({}, "24.10", 0, "1 plans fit Triton 24.10"),
        ({"tensorrt": "8.6.1.6", "release": None}, "23.05", 1, "built with TensorRT 8.6.1.6; Triton 23.05 has 8.6.1.2"),
        ({}, "25.01", 1, "build it in nvcr.io/nvidia/tensorrt:25.01-py3"),
        ({}, "24.1", 2, "must be a release of NVIDIA's containers"),
    ],
)
def test_stamp_is_compared_with_the_server(
    copied: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    stamp: dict[str, Any],
    release: str,
    status: int,
    message: str,
) -> None:
    with_plan(copied[1], **stamp)
    assert cli.main(["verify", str(copied[1]), "--server", release]) == status
    captured = capsys.readouterr()
    assert message in captured.out + captured.err


def test_plan_without_its_stamp_is_refused(copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with_plan(copied[1]).with_name("model.plan.json").unlink()
    assert cli.main(["verify", str(copied[1]), "--server", "24.10"]) == 1
    assert "must have its stamp beside it, model.plan.json" in capsys.readouterr().err


def test_embedded_server_reads_the_config_and_wants_a_gpu(copied: tuple[Path, Path]) -> None:
    with_plan(copied[1])
    with pytest.raises(ModelRepositoryError) as raised, TritonServer(copied[1]):
        pass
    assert "classification_engine" in str(raised.value)


def test_repository_without_plans_depends_on_no_release(
    tiny_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(tiny_repository), "--server", "24.10"]) == 0
    assert "no plan here depends on Triton 24.10" in capsys.readouterr().out


@pytest.fixture(scope="module")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    recipe = write_task(folder, "classification")
    assert cli.main(["build", str(recipe), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_server_is_gated_and_its_answers_recorded(
    tiny_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_repository, tmp_path / "out"))
    recipe = tiny_repository.parent / "recipe.yaml"
    before = repository.read_manifest(out, "classification")
    with TritonServer(out) as server:
        command = ["evaluate", str(recipe), "--target", server.grpc_url, "--repository", str(out), "--wait-s", "5"]
        assert cli.main(command) == 0
        after = repository.read_manifest(out, "classification")
        assert after["golden"]["score_tolerance"] == 0.02
        assert [r["inputs"] for r in after["golden"]["requests"]] == [r["inputs"] for r in before["golden"]["requests"]]
        assert after["plans"] == {}
        path = out / "classification" / f"manifest.{before['build']}.json"
        changed = json.loads(path.read_text())
        changed["gate"]["baseline"] = 1000.0
        path.write_text(json.dumps(changed))
        assert cli.main(command) == 1
        assert "gate: accuracy must stay at or above" in capsys.readouterr().err
        assert json.loads(path.read_text()) == changed
    assert cli.main([*command[:3], "torch", *command[4:]]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph": ["fuse"]}, r"TensorRT has none of these operators: .*; leave fuse and quantize out"),
        ({"graph": ["quantize"]}, r"TensorRT has none of these operators: MatMulIntegerToFloat \(.*\).* more; leave"),
        ({"engine": {"tensorrt": {"release": "2024"}}}, "engine.tensorrt.release: must be a release"),
        ({"engine": {"tensorrt": {"builder_optimization_level": 6}}}, "builder_optimization_level: input should be"),
        ({"engine": {"tensorrt": {"precision": "int8"}}}, "precision: input should be 'fp32', 'fp16' or 'bf16'"),
    ],
)
def test_what_tensorrt_cannot_take_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], message: str
) -> None:
    recipe = recipe_for(tmp_path, **change)
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, error)
    assert not (tmp_path / "out" / "classification").exists()


@pytest.mark.parametrize(
    ("serve", "message"),
    [
        (
            {"lengths": "ragged"},
            "serve.lengths: the engine tensorrt cannot take 'ragged'; allowed: auto, buckets, exact",
        ),
        ({"steps": "single"}, "serve.steps: the engine tensorrt does not run inside a Python step"),
    ],
)
def test_what_the_engine_does_not_take_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], serve: dict[str, object], message: str
) -> None:
    import yaml

    recipe = recipe_for(tmp_path)
    text = yaml.safe_load(recipe.read_text())
    text["serve"] |= serve
    recipe.write_text(yaml.safe_dump(text))
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


GIVES = signature(make("bert", export.ATTENTION, "mean"))
ASKED = asked(GIVES, "buckets", borders=(16, 48))


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ([], "must have at least 1 profile"),
        ([{"batch": [1, 4, 4], "length": [16, 16, 48]}], "none holds a batch of 5 at 16 tokens"),
        ([{"batch": [1, 8, 8], "length": [1, 16, 32]}], "none holds a batch of 1 at 48 tokens"),
        ([{"batch": [4, 2, 8], "length": [1, 16, 48]}], r"\[0\].batch: must be \[min, opt, max\], ascending"),
    ],
)
def test_profiles_that_exclude_what_is_asked_are_refused(profiles: list[dict[str, list[int]]], message: str) -> None:
    config = engine.Config(optimization_profiles=[Profile(**profile) for profile in profiles])
    with pytest.raises(InputError, match=message):
        engine.plan_settings(config, ASKED)


def test_settings_say_what_the_recipe_says() -> None:
    config = engine.Config(workspace_mib=2, strip=True, compute_capabilities=["8.0", "9.0"], instances=2)
    settings = engine.plan_settings(config, ASKED)
    assert settings["workspace_bytes"] == 2 << 20
    assert settings["refit"] is True
    # The median of what is asked, padded to its border; one text, and a full batch.
    assert settings["shapes"] == [[1, 16], [8, 16]]
    model = engine.model_config(config, ASKED)
    assert dict(model.cc_model_filenames) == {"8.0": "model_8.0.plan", "9.0": "model_9.0.plan"}
    assert model.instance_group[0].count == 2


def test_older_releases_get_a_graph_of_fp32_and_flags() -> None:
    model = make("bert", export.ATTENTION, "mean")
    graph = export.export(model, GIVES)
    rungs = engine.rungs(graph, graph, engine.Config(release="24.02"))
    assert list(rungs) == ["fp32", "fp16"]
    assert pending.types(rungs["fp16"]) == []
    assert rungs["fp16"].opset_import[0].version == 17


def test_int32_inputs_change_no_answer() -> None:
    model = make("bert", export.ATTENTION, "mean")
    graph = export.export(model, GIVES)
    ids = np.arange(5, 17)[None]
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    expected = session_infer(graph.SerializeToString())(feed)
    narrow = engine.rungs(graph, graph, engine.Config(precision="fp32"))["fp32"]
    got = session_infer(narrow.SerializeToString())({name: value.astype(np.int32) for name, value in feed.items()})
    assert np.abs(got["embedding"] - expected["embedding"]).max() <= 1e-6


def test_mistake_is_said_before_anything_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Callable[..., object]] = []
    monkeypatch.setattr(builder, "build", calls.append)
    config = engine.Config(release="never")
    with pytest.raises(InputError, match="must be a release"):
        engine.build({}, tmp_path / "1", config, ASKED)
    assert calls == []
    assert not (tmp_path / "1").exists()
