"""`engine: onnxruntime_gpu` without a GPU: gated on the CPU, and written for the provider that will run it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import onnx
import pytest
import yaml
from at_once import AT_ONCE
from onnx import TensorProto
from tiny_encoders import asked, make, signature
from tiny_sources import write_task
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import cli, repository
from tritonpress_generator.engines import onnxruntime_gpu as engine
from tritonpress_generator.errors import InputError
from tritonpress_server import ModelRepositoryError, TritonServer


def recipe_for(folder: Path, *, graph: list[object], **settings: object) -> Path:
    path = write_task(folder, "classification")
    recipe = yaml.safe_load(path.read_text())
    recipe |= {"engine": {"onnxruntime_gpu": settings}, "graph": graph}
    recipe["serve"] |= {"lengths": [16, 48], "steps": "ensemble"}
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize(
    ("settings", "graph", "types"),
    [
        pytest.param({}, [], {TensorProto.FLOAT16}, marks=pytest.mark.slow),
        (
            {"provider": "tensorrt", "precision": "int8"},
            [{"qdq": {"calibration": "min_max"}}],
            # Beside INT8 no FP16: of the two Triton's backend sets one flag.
            {TensorProto.INT8},
        ),
        pytest.param({"precision": "fp32"}, ["fuse"], set(), marks=pytest.mark.slow),
    ],
)
def test_built_for_the_gpu_and_refused_without_one(
    tmp_path: Path, settings: dict[str, object], graph: list[object], types: set[int]
) -> None:
    recipe = recipe_for(tmp_path, graph=graph, **settings)
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out").rglob("model.onnx")
    low = {tensor.data_type for tensor in onnx.load(path).graph.initializer} - {TensorProto.FLOAT, TensorProto.INT64}
    assert low - {TensorProto.INT32, TensorProto.BOOL} == types
    config = repository.read_config(path.parents[1])
    assert config.platform == "onnxruntime_onnx"
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
        assert accelerator.parameters["precision_mode"] == "INT8"
    with pytest.raises(ModelRepositoryError) as raised, TritonServer(tmp_path / "out", settings=AT_ONCE):
        pass
    assert "classification_engine" in str(raised.value)


def test_provider_of_tensorrt_is_named_with_its_settings() -> None:
    gives = signature(make("bert", "own", "mean"))
    settings = engine.Config(provider="tensorrt", workspace_mib=2, engine_cache="/cache")
    config = engine.model_config(settings, asked(gives))
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": "FP16",
        "max_workspace_size_bytes": str(2 << 20),
        "trt_engine_cache_enable": "true",
        "trt_engine_cache_path": "/cache",
        "trt_profile_min_shapes": "input_ids:1x1,attention_mask:1x1",
        "trt_profile_opt_shapes": "input_ids:8x12,attention_mask:8x12",
        "trt_profile_max_shapes": "input_ids:8x48,attention_mask:8x48",
    }
    plain = engine.model_config(engine.Config(), asked(gives))
    assert not plain.optimization.HasField("execution_accelerators")


@pytest.mark.parametrize(
    ("settings", "graph", "message"),
    [
        ({}, ["quantize"], "quantize makes INT8 for the CPU; leave it out of `graph`"),
        (
            {"provider": "tensorrt"},
            ["fuse"],
            "TensorRT has none of ONNX Runtime's own operators that fuse makes; leave fuse and weight_only out",
        ),
        (
            {"precision": "fp16"},
            ["fuse"],
            "what fuse makes computes in FP32; leave fuse and weight_only out, or take precision fp32",
        ),
        (
            {"provider": "tensorrt"},
            [{"qdq": {"calibration": "min_max"}}],
            "precision must be int8 with qdq, got fp16: Triton's backend tells TensorRT of FP16 or of INT8; take int8, "
            "which leaves the rest in FP32, or engine: tensorrt for both",
        ),
        (
            {"provider": "tensorrt", "precision": "int8"},
            [{"qdq": {"calibration": "min_max", "precision": "fp8"}}],
            "cannot tell a provider of FP8; take qdq with precision int8, or engine: tensorrt",
        ),
        ({"provider": "tensorrt", "precision": "int8"}, [], "precision int8 needs pairs in the graph; add qdq"),
        ({"precision": "int8"}, [], "precision: int8 is of provider tensorrt; take that, or precision fp16"),
        ({"provider": "rocm"}, [], "provider: input should be 'cuda' or 'tensorrt', got 'rocm'"),
    ],
)
def test_what_does_not_run_there_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, object],
    graph: list[object],
    message: str,
) -> None:
    recipe = recipe_for(tmp_path, graph=graph, **settings)
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_two_packages_of_one_module_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "version", lambda name: "1.32.0")
    with pytest.raises(InputError, match=r"onnxruntime 1\.32\.0 and onnxruntime-gpu 1\.32\.0 are both installed"):
        engine.runs_here()

    def only_gpu(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return "1.32.0"

    monkeypatch.setattr(engine, "version", only_gpu)
    assert engine.runs_here() is False
