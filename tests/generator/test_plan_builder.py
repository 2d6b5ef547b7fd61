"""The builder of plans asks of every TensorRT what that one has, and says in a line what it has not.

There is no GPU here: what is shown is which calls are made (`recorded_tensorrt.py`), that the bindings of TensorRT
8.5.3.1, 10.13.3.9 and 11.4.0.106 have every name that is used, and the choice among what was timed.
"""

from __future__ import annotations

import ast
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_tensorrt import NAMES, VERSIONS, Recorded
from tritonpress_generator.plans import builder, runner

OLD, NEW, NEWEST = VERSIONS
INPUTS = ["input_ids", "attention_mask"]
SETTINGS: dict[str, Any] = {
    "inputs": INPUTS,
    "profiles": [{"batch": [1, 8, 8], "length": [32, 32, 32]}, {"batch": [1, 8, 8], "length": [48, 48, 48]}],
    "shapes": [[1, 32]],
}
HOLDERS = {
    "builder": "Builder", "network": "INetworkDefinition", "config": "IBuilderConfig", "parser": "OnnxParser",
    "profile": "IOptimizationProfile", "runtime": "Runtime", "engine": "ICudaEngine", "context": "IExecutionContext",
    "cache": "ITimingCache", "error": "ParserError",
}  # fmt: skip
"""The class of what the builder's variables and attributes hold."""


def answers(**changes: Any) -> dict[str, Any]:
    return {
        "OnnxParser.parse": lambda *_: True,
        "OnnxParser.num_errors": 0,
        "INetworkDefinition.num_inputs": 2,
        "INetworkDefinition.get_input": lambda number: SimpleNamespace(name=INPUTS[number]),
        "IBuilderConfig.add_optimization_profile": lambda *_: 0,
        "Builder.build_serialized_network": lambda *_: b"plan",
        "ITimingCache.serialize": lambda *_: b"cache",
        **changes,
    }


def built(version: str, folder: Path, **settings: Any) -> tuple[Recorded, dict[str, Any]]:
    (folder / "model.onnx").write_bytes(b"graph")
    trt = Recorded(version, answers(**settings.pop("answers", {})))
    rung = {"name": "rung", "model": "model.onnx", "types": list(settings.pop("types", ()))}
    plan, stamp = builder.build(trt, rung, {**SETTINGS, **settings}, folder)
    assert plan == b"plan"
    return trt, stamp


def flags(trt: Recorded) -> set[str]:
    numbers = {number for (number,) in trt.made("IBuilderConfig.set_flag")}
    names = [name for name in NAMES[trt.__version__]["BuilderFlag"] if name not in {"name", "value"}]
    return {name for name in names if getattr(trt.BuilderFlag, name) in numbers}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_release_builds(tmp_path: Path, version: str) -> None:
    trt, stamp = built(version, tmp_path)
    assert stamp["tensorrt"] == version
    assert stamp["strongly_typed"] == (version != OLD)
    assert len(trt.made("IBuilderConfig.add_optimization_profile")) == 2
    shapes = trt.made("IOptimizationProfile.set_shape")
    assert shapes[0] == ("input_ids", (1, 32), (8, 32), (8, 32))
    assert trt.made("IBuilderConfig.create_timing_cache") == [(b"",)]
    # The next build begins with what this one has timed.
    again, _ = built(version, tmp_path)
    assert again.made("IBuilderConfig.create_timing_cache") == [(b"cache",)]


def test_types_are_flags_only_where_the_graph_cannot_say_them(tmp_path: Path) -> None:
    old, _ = built(OLD, tmp_path, types=("FLOAT16", "INT8"))
    assert flags(old) == {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"}
    for version in (NEW, NEWEST):
        trt, _ = built(version, tmp_path, types=("FLOAT16", "INT8", "FLOAT8E4M3FN"))
        assert flags(trt) == set()
        ((network_flags,),) = trt.made("Builder.create_network")
        assert network_flags & 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED


def test_options_reach_the_builder(tmp_path: Path) -> None:
    options = {"version_compatible": True, "refit": True, "sparsity": True, "workspace_bytes": 1 << 20,
               "builder_optimization_level": 5, "hardware_compatibility": "ampere_plus"}  # fmt: skip
    for version in (NEW, NEWEST):
        trt, stamp = built(version, tmp_path, **options)
        assert flags(trt) == {"VERSION_COMPATIBLE", "REFIT", "SPARSE_WEIGHTS"}
        assert trt.made("IBuilderConfig.set_memory_pool_limit")[0][1] == 1 << 20
        assert trt.made("IBuilderConfig.builder_optimization_level") == [(5,)]
        level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        assert trt.made("IBuilderConfig.hardware_compatibility_level") == [(level,)]
        assert stamp["version_compatible"] is True
    trt, _ = built(OLD, tmp_path, tactic_sources=[])
    assert trt.made("IBuilderConfig.set_tactic_sources") == [(0,)]


@pytest.mark.parametrize(
    ("version", "settings", "message"),
    [
        (OLD, {"version_compatible": True}, "VERSION_COMPATIBLE: TensorRT 8.5.3.1 has no such flag"),
        (OLD, {"builder_optimization_level": 3}, "builder_optimization_level: TensorRT 8.5.3.1 has none"),
        (OLD, {"hardware_compatibility": "ampere_plus"}, "hardware_compatibility: TensorRT 8.5.3.1 has no ampere_plus"),
        (OLD, {"types": ("FLOAT8E4M3FN",)}, "rung rung: TensorRT 8.5.3.1 knows no FP8"),
        (OLD, {"types": ("BFLOAT16",)}, "rung rung: TensorRT 8.5.3.1 knows no BF16"),
        (NEW, {"answers": {"Builder.build_serialized_network": lambda *_: None}}, r"builds no plan \(TensorRT gave no"),
        (NEW, {"answers": {"IBuilderConfig.add_optimization_profile": lambda *_: -1}}, "profile .* TensorRT refuses"),
        (NEW, {"inputs": ["other"]}, r"inputs: the graph must have \['other'\], has"),
    ],
)
def test_what_a_release_cannot_do_is_said(tmp_path: Path, version: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(runner.PlanError) as raised:
        built(version, tmp_path, **settings)
    assert re.search(message, str(raised.value))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("version", VERSIONS)
def test_operators_that_the_parser_lacks_are_named(tmp_path: Path, version: str) -> None:
    told = {
        "OnnxParser.parse": lambda *_: False,
        "OnnxParser.num_errors": 1,
        "ParserError.desc": lambda: "No importer\nregistered",
        "ParserError.node": lambda: 7,
        "ParserError.node_name": lambda: "layer.0/Loop",
        "ParserError.node_operator": lambda: "Loop",
    }
    with pytest.raises(runner.PlanError) as raised:
        built(version, tmp_path, answers=told)
    place = "node 7" if version == OLD else "Loop layer.0/Loop"
    assert f"cannot take 1 of its nodes ({place}: No importer registered)" in str(raised.value)


@pytest.mark.parametrize("version", VERSIONS)
def test_plan_that_cannot_be_loaded_is_refused(version: str) -> None:
    trt = Recorded(version, {"Runtime.deserialize_cuda_engine": lambda *_: None})
    stamp = {"tensorrt": "9.1", "gpu": "a GPU", "version_compatible": True}
    with pytest.raises(runner.PlanError, match=r"built with TensorRT 9\.1 on a GPU cannot be loaded by .*; build it"):
        runner.load(trt, b"plan", stamp)
    assert trt.made("Runtime.engine_host_code_allowed") == ([] if version == OLD else [(True,)])


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Row major linear FP16", "FP16"),
        ("Row major linear FP16 format", "FP16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "INT8"),
        ("Half", "FP16"),
        ("Float", "FP32"),
        ("BFloat16", "BF16"),
    ],
)
def test_types_of_layers_are_read_in_every_releases_words(said: str, kind: str) -> None:
    for key in ("Format/Datatype", "DataType"):
        text = json.dumps({"Layers": [{"Outputs": [{key: said}]}]})
        trt = Recorded(OLD, {"EngineInspector.get_engine_information": lambda _, text=text: text})
        engine, _ = runner.load(trt, b"plan")
        assert builder.layers(trt, engine)["by_type"] == {kind: 1}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_type_of_an_input_is_one_of_numpys(version: str) -> None:
    # What inputs and outputs of a plan can be; the others have no NumPy type.
    for name in {"FLOAT", "HALF", "INT8", "INT32", "INT64", "BOOL", "UINT8"} & set(NAMES[version]["DataType"]):
        assert runner.numpy_type(SimpleNamespace(name=name)).itemsize in {1, 2, 4, 8}
    assert runner.numpy_type(SimpleNamespace(name="FLOAT")) == "float32"
    assert runner.numpy_type(SimpleNamespace(name="INT32")) == "int32"


@pytest.mark.parametrize("version", VERSIONS)
def test_layers_are_counted_by_type(version: str) -> None:
    layer = {"Outputs": [{"Name": "x", "Format/Datatype": "Row major linear FP16"}]}
    told = {"EngineInspector.get_engine_information": lambda _: json.dumps({"Layers": [layer, layer, "unnamed"]})}
    trt = Recorded(version, told)
    engine, _ = runner.load(trt, b"plan")
    assert builder.layers(trt, engine)["by_type"] == {"FP16": 2, "?": 1}


def asked_for(tree: ast.AST) -> set[str]:
    """The names that are asked for by hasattr or getattr before they are used."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    asking = [node for node in calls if getattr(node.func, "id", "") in {"hasattr", "getattr"}]
    return {str(argument.value) for node in asking for argument in node.args if isinstance(argument, ast.Constant)}


@pytest.mark.parametrize("version", VERSIONS)
def test_bindings_have_every_name_that_is_used(version: str) -> None:
    files = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in (builder, runner)]
    tree = ast.Module([node for text in files for node in ast.parse(text).body], [])
    # `__version__` is of the package's Python part.
    exempt = asked_for(tree) | {"__version__", "__init__"}
    used = 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr in exempt:
            continue
        owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
        of = "" if owner in {"trt", "_trt"} else HOLDERS.get(owner.lstrip("_"), owner)
        if of in NAMES[version] and owner:
            assert node.attr in NAMES[version][of], f"{of}.{node.attr}"
            used += 1
    assert used > 40


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=4))
def test_what_is_left_grows_faster(ms: list[float]) -> None:
    times = [(f"rung{number}", value) for number, value in enumerate(ms)]
    refused = builder.slower(times)
    left = [value for name, value in times if name not in refused]
    assert left == sorted(set(left), reverse=True)
    assert left[0] == ms[0]
    assert min(left) == min(ms)


def test_refusal_has_both_figures() -> None:
    refused = builder.slower([("fp32", 3.0), ("fp16", 2.0), ("int8", 2.5)])
    assert refused == {"int8": "must be faster than fp16, which takes 2.000 ms; takes 2.500 ms"}


def test_runs_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "TIMED_S", 0.1)
    runners = {"slow": lambda feed: time.sleep(0.004), "fast": lambda feed: time.sleep(0.001)}
    times = runner.timed(runners, INPUTS, [(1, 8), (2, 8)])
    assert times["slow"] > 1.5 * times["fast"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "usage: build_plan SETTINGS.json"), (["none.json"], "none.json: cannot be read")],
)
def test_command_says_what_is_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert builder.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_without_tensorrt_the_command_names_the_container(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.json").write_text("{}")
    assert builder.main([str(tmp_path / "plan.json")]) == 2
    assert "TensorRT is needed" in capsys.readouterr().err


def test_old_plan_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(b"old")
    builder.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.plan"]
