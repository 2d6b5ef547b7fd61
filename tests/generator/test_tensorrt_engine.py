"""Without a GPU everything up to the plan is built, and what builds it lies beside it; the message says so."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx.parser
import pytest
from at_once import AT_ONCE
from onnx import TensorProto
from tiny_sources import write_task
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import cli, repository
from tritonpress_generator import recipe as recipes
from tritonpress_generator.engines import tensorrt
from tritonpress_generator.errors import InputError
from tritonpress_generator.plans import pending
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


def with_plan(out: Path, *, gated: bool = True, **stamp: Any) -> Path:
    """Stands for what the builder leaves: files of no TensorRT, whose stamps are compared and which nothing loads."""
    plan = version_folder(out) / "model.plan"
    plan.write_bytes(b"not a plan")
    plan.with_name("model.plan.json").write_text(json.dumps({"tensorrt": "10.5.0.18", "release": "24.10", **stamp}))
    if gated:
        build = repository.read_manifest(out, "classification")["build"]
        repository.record(out, "classification", build, {}, [plan, plan.with_name("model.plan.json")])
    return plan


def test_plan_that_no_gate_has_passed_is_pending(copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with_plan(copied[1], gated=False)
    assert cli.main(["verify", str(copied[1]), "--server", "24.10"]) == 2
    assert "classification: its plan is pending; run" in capsys.readouterr().err


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
    assert (folder / "build_plan" / "cuda_calls.py").is_file()
    # Without this project's packages: as far as TensorRT, which is not here.
    alone = "import sys, runpy; sys.path.insert(0, '.'); sys.argv[1:] = ['plan.json']; runpy.run_module('build_plan')"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", alone], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("build_plan: TensorRT is needed")
    script = folder / "build_plan.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    text = script.read_text()
    assert "nvcr.io/nvidia/tensorrt:24.10-py3" in text
    assert "nvcr.io/nvidia/tritonserver:24.10-py3" in text
    used = subprocess.run([str(script)], capture_output=True, text=True, check=False)
    assert used.returncode != 0
    assert "usage: build_plan.sh RECIPE" in used.stderr


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
    gate = {"dataset": "texts.tsv", "metric": "accuracy", "keep": 1.0, "confidence": "point"}
    recipe = recipe_for(tmp_path, graph=[ruined], gate=gate)
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
    with pytest.raises(ModelRepositoryError) as raised, TritonServer(copied[1], settings=AT_ONCE):
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
    with TritonServer(out, settings=AT_ONCE) as server:
        command = ["evaluate", str(recipe), "--target", server.grpc_url, "--repository", str(out), "--wait-s", "5"]
        assert cli.main(command) == 0
        after = repository.read_manifest(out, "classification")
        assert after["golden"]["score_tolerance"] == before["golden"]["score_tolerance"]
        assert [r["inputs"] for r in after["golden"]["requests"]] == [r["inputs"] for r in before["golden"]["requests"]]
        assert after["plans"] == {}
        path = next(p for p in (out / "classification" / "kept").iterdir() if '"key": "baseline of ' in p.read_text())
        kept = json.loads(path.read_text())
        for row in kept["value"]["answers"]["LABEL"]:
            row.reverse()
        path.write_text(json.dumps(kept))
        strict = tiny_repository.parent / "strict.yaml"
        strict.write_text(recipe.read_text().replace("confidence: point", "confidence: point\n  agreement: 0.9"))
        assert cli.main(["evaluate", str(strict), *command[2:]]) == 1
        assert "gate: agreement with FP32's answers must stay at or above 0.9" in capsys.readouterr().err
        assert repository.read_manifest(out, "classification") == after
        path.unlink()
        assert cli.main(command) == 2
        assert "must have FP32's answers to the gate's data, has none" in capsys.readouterr().err
    assert cli.main([*command[:3], "torch", *command[4:]]) == 2
    capsys.readouterr()
    assert cli.main([*command[:5], str(tmp_path / "none"), "--wait-s", "60"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_operators_that_tensorrt_lacks_are_named() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (uint8[2] y)
        { [code] y, scale, zero = DynamicQuantizeLinear(x) }"""
    )
    with pytest.raises(InputError, match=r"TensorRT has none of these operators: DynamicQuantizeLinear \(code\); take"):
        tensorrt.rungs(model, model, tensorrt.Config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"graph": ["fuse"]},
            "TensorRT has none of ONNX Runtime's own operators that fuse makes; leave fuse, quantize",
        ),
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
