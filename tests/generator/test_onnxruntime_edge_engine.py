"""`engine: onnxruntime_edge` is built, held to a measured ceiling of memory, and served by the real Triton."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import FAMILIES, PACKED, asked, feed, make, mostly_slow, pairs, signature
from tiny_sources import write_task
from tritonpress_generator import cli, export, repository
from tritonpress_generator.engines import onnxruntime_edge as engine
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import fixed_point, fuse, qdq, quantize

PORTABLE = {"ai.onnx", "com.microsoft"}
"""The domains whose kernels every CPU build has; `com.microsoft.nchwc` is of x86 alone."""
ON_ARM = os.environ.get("TRITONPRESS_AARCH64_PYTHON")


def recipe_for(folder: Path, task: str = "classification", *, graph: object, **settings: object) -> Path:
    path = write_task(folder, task)
    recipe = yaml.safe_load(path.read_text())
    engine_settings = settings.pop("engine", {})
    recipe |= {"engine": {"onnxruntime_edge": engine_settings}, "graph": graph}
    recipe["serve"] |= settings
    path.write_text(yaml.safe_dump(recipe))
    return path


def domains(folder: Path) -> set[str]:
    """Returns the operators' domains that a reduced build of ONNX Runtime would be told of."""
    lines = (folder / "required_operators_and_types.config").read_text().splitlines()
    return {line.split(";")[0] for line in lines}


@pytest.mark.parametrize(
    ("task", "steps", "lengths", "graph"),
    [
        pytest.param(
            "classification", "single", "exact", ["fuse", {"fixed_point": {"bits": 16}}], marks=pytest.mark.slow
        ),
        pytest.param("classification", "ensemble", [16, 48], ["fuse", "quantize"], marks=pytest.mark.slow),
        pytest.param(
            "question_answering",
            "scripting",
            "exact",
            [{"fixed_point": {"bits": 8, "power_of_two_scales": True}}],
            marks=pytest.mark.slow,
        ),
        pytest.param("question_answering", "single", "auto", [], marks=pytest.mark.slow),
    ],
)
def test_built_and_verified(
    tmp_path: Path, task: str, steps: str, lengths: object, graph: object, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_for(tmp_path, task, graph=graph, steps=steps, lengths=lengths, engine={"memory_ceiling_mib": 4096})
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 0
    manifest = repository.read_manifest(tmp_path / "out", task)
    assert manifest["engine"] == "onnxruntime_edge"
    figures = [*manifest["measured"]["peak_memory_bytes"].values()]
    assert len(figures) == 5 and figures == sorted(figures) and figures[0] > 2**24
    (model,) = (tmp_path / "out").rglob("model.ort")
    assert domains(model.parent) <= PORTABLE
    config = repository.read_config(model.parents[1])
    assert [group.count for group in config.instance_group] == [1]
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    if steps != "single":
        assert (config.platform, config.default_model_filename) == ("onnxruntime_onnx", "model.ort")
    assert cli.main(["verify", str(tmp_path / "out")]) == 0
    assert "are those of the build" in capsys.readouterr().out


@pytest.mark.slow
def test_ceiling_that_nothing_meets_ends_with_1_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_for(tmp_path, graph=["fuse"], engine={"memory_ceiling_mib": 8})
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "engine.onnxruntime_edge: resident memory must stay within memory_ceiling_mib 8, got " in error
    assert "interpreter " in error and "full batch " in error and "nothing was written" in error
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("settings", "serve", "message"),
    [
        ({"memory_ceiling_mib": 0}, {}, "memory_ceiling_mib: input should be greater than 0, got 0"),
        ({"memory_ceiling_mib": "64"}, {}, "memory_ceiling_mib: input should be a valid number, got '64'"),
        ({"instances": 2}, {}, "instances: unknown key; allowed: memory_ceiling_mib"),
        ({}, {"lengths": "ragged"}, "the engine onnxruntime_edge cannot take 'ragged'; allowed: auto, exact, buckets"),
    ],
)
def test_bad_settings_end_with_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, object],
    serve: dict[str, object],
    message: str,
) -> None:
    recipe = recipe_for(tmp_path, graph=[], engine=settings, **serve)
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def built(graph: onnx.ModelProto, folder: Path, gives: object) -> Path:
    engine.build({"graph": graph}, folder, engine.Config(), asked(gives))  # type: ignore[arg-type]
    return folder


def test_graph_that_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    gives = signature(make("bert", "own"))
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    nodes = [helper.make_node("Fourier", ["x"], ["y"], domain="elsewhere")]
    graph = helper.make_graph(nodes, "graph", tensors[:1], tensors[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("elsewhere", 1)]
    with pytest.raises(InputError, match=r"cannot make its format of the graph \(.*Fourier.*\); leave out") as raised:
        built(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path, gives)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("*"))


def test_layout_of_one_processor_is_left_out(tmp_path: Path) -> None:
    """ONNX Runtime's highest level makes this convolution x86's own, and the engine's level does not."""
    weight = numpy_helper.from_array(np.ones((16, 16, 3, 3), np.float32), "w")
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, None, None]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "graph", tensors[:1], tensors[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "all.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert "com.microsoft.nchwc" in {node.domain for node in onnx.load(tmp_path / "all.onnx").graph.node}
    assert domains(built(model, tmp_path / "1", signature(make("bert", "own")))) <= PORTABLE


@pytest.mark.parametrize("family", mostly_slow(FAMILIES))
def test_every_family_answers_as_before(tmp_path: Path, family: str) -> None:
    model = make(family, export.ATTENTION if family in PACKED else "own", "span")
    gives = signature(model)
    graph = export.export(model, gives)
    folder = built(graph, tmp_path / "1", gives)
    assert domains(folder) <= PORTABLE
    batch = pairs([5, 12, 1])
    sample = {name: batch[name] for name in gives.inputs}
    expected, got = session_infer(graph.SerializeToString())(sample), engine.load(folder, engine.Config())(sample)
    for name, answer in expected.items():
        assert np.abs((got[name] - answer) * sample["attention_mask"]).max() <= 2e-5


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Engines in every precision, of one model."""
    model = make("bert", export.ATTENTION)
    gives = signature(model)
    fp32 = export.export(model, gives)
    fused = fuse.apply(fp32, fuse.Config(), [])
    samples = [feed([1 + i % 50], seed=i) for i in range(24)]
    graphs = {
        "fp32": fused,
        "quantize": quantize.apply(fused, quantize.Config(), samples),
        "qdq": qdq.apply(fp32, qdq.Config(calibration="min_max"), samples),
        "fixed_point 8": fixed_point.apply(fused, fixed_point.Config(bits=8), samples),
        "fixed_point 16": fixed_point.apply(fused, fixed_point.Config(bits=16), samples),
    }
    return {name: built(graph, tmp_path_factory.mktemp("engine") / "1", gives) for name, graph in graphs.items()}


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("quantize", ["MatMulIntegerToFloat", "MultiHeadAttention"]),
        ("fixed_point 8", ["MatMulIntegerToFloat", "MultiHeadAttention"]),
        ("fixed_point 16", ["DequantizeLinear", "QuantizeLinear", "MatMul"]),
    ],
)
def test_operators_are_those_of_the_precision(engines: dict[str, Path], name: str, operators: list[str]) -> None:
    text = (engines[name] / "required_operators_and_types.config").read_text()
    assert all(operator in text for operator in operators)
    assert "#" not in text
    assert ("DequantizeLinear" in text) == (name == "fixed_point 16")


@pytest.mark.parametrize("name", ["fp32", "quantize", "qdq", "fixed_point 8", "fixed_point 16"])
def test_answers_do_not_depend_on_neighbours(engines: dict[str, Path], name: str) -> None:
    infer = engine.load(engines[name], engine.Config())
    together = feed([9, 30, 2, 17])
    answers = infer(together)["embedding"]
    for row, length in enumerate([9, 30, 2, 17]):
        alone = infer({key: tensor[row : row + 1, :length] for key, tensor in together.items()})["embedding"]
        assert np.abs(alone[0] - answers[row]).max() <= 1e-5


RUN = """
import platform, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.ort", providers=["CPUExecutionProvider"])
feed = {name: np.load(f"{sys.argv[2]}/{name}.npy") for name in ("input_ids", "attention_mask")}
np.save(f"{sys.argv[2]}/{platform.machine()}.npy", session.run(None, feed)[0])
"""


@pytest.mark.skipif(
    not ON_ARM, reason="needs TRITONPRESS_AARCH64_PYTHON, a command that runs Python with onnxruntime on Arm"
)
@pytest.mark.parametrize("name", ["fp32", "quantize", "qdq", "fixed_point 8", "fixed_point 16"])
def test_answers_of_arm_are_those_of_x86(tmp_path: Path, engines: dict[str, Path], name: str) -> None:
    for key, tensor in feed([9, 30, 2, 17]).items():
        np.save(tmp_path / f"{key}.npy", tensor)
    for python in ([sys.executable], shlex.split(str(ON_ARM))):
        subprocess.run([*python, "-c", RUN, str(engines[name]), str(tmp_path)], check=True)
    here, arm = np.load(tmp_path / "x86_64.npy"), np.load(tmp_path / "aarch64.npy")
    assert np.abs(here - arm).max() <= 1e-5
