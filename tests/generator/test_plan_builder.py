"""The builder of plans asks of every TensorRT what that one has, and says in a line what it has not.

There is no GPU here: what is shown is which calls are made (`recorded_tensorrt.py`), that the bindings of TensorRT
8.5.3.1, 10.13.3.9 and 11.4.0.106 have every name that is used, and the choice among what was timed.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
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
SHORT_85 = [
    "[optimizer.cpp::computeCosts::3728] Error Code 4: Internal Error (Could not find any implementation for node "
    "{ForeignNode[a...b]} due to insufficient workspace. See verbose log for requested sizes.)",
    "[builder.cpp::buildSerializedNetwork::751] Error Code 2: Internal Error (Assertion engine != nullptr failed. )",
]
"""What TensorRT 8.5 and 8.6 were seen to say, in public threads."""
SHORT_84 = [
    "Internal error: could not find any implementation for node a. Try increasing the workspace size with "
    "IBuilderConfig::setMemoryPoolLimit().",
    *SHORT_85[1:],
]
"""What NVIDIA's guide has."""
GPU: dict[str, Any] = {"gpu": "NVIDIA H200", "compute_capability": "9.0", "cuda": 12060, "driver": 13000}
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


def say(trt: Recorded, errors: list[str]) -> None:
    """Logs `errors` as TensorRT does, which gives nothing else where it fails."""
    ((logger,), *_) = trt.made("Builder")
    for error in errors:
        logger.log(trt.ILogger.ERROR, error)


def built(version: str, folder: Path, **settings: Any) -> tuple[Recorded, dict[str, Any]]:
    (folder / "model.onnx").write_bytes(b"graph")
    trt = Recorded(version, answers(**settings.pop("answers", {})))
    if errors := settings.pop("errors", None):
        trt.answers["Builder.build_serialized_network"] = lambda *_: say(trt, errors)
    about = settings.pop("about", GPU)
    rung = {"name": "rung", "model": "model.onnx", "types": list(settings.pop("types", ()))}
    plan = folder / "model.rung.plan"
    stamp = builder.build(trt, rung, {**SETTINGS, **settings}, folder, about=about, plan=plan, cache=folder / "timings")
    assert plan.read_bytes() == b"plan"
    assert json.loads((folder / "model.rung.plan.json").read_text()) == stamp
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


def test_timings_of_another_gpu_or_release_are_not_asked(tmp_path: Path) -> None:
    built(NEW, tmp_path)
    for version, about in ((NEWEST, GPU), (NEW, GPU | {"gpu": "NVIDIA A100/80", "compute_capability": "8.0"})):
        trt, _ = built(version, tmp_path, about=about)
        assert trt.made("IBuilderConfig.create_timing_cache") == [(b"",)]
    assert sorted(path.name for path in (tmp_path / "timings").iterdir()) == [
        "timing.NVIDIA-A100-80-8.0-TensorRT-10.13.3.9.cache",
        "timing.NVIDIA-H200-9.0-TensorRT-10.13.3.9.cache",
        "timing.NVIDIA-H200-9.0-TensorRT-11.4.0.106.cache",
    ]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("unreadable", [True, False])
def test_timings_that_tensorrt_refuses_are_replaced(tmp_path: Path, version: str, unreadable: bool) -> None:
    built(version, tmp_path, answers={"ITimingCache.serialize": lambda *_: b"foreign"})
    accepted = iter([False, True])
    told: dict[str, Any] = {"IBuilderConfig.set_timing_cache": lambda *_: next(accepted)}
    if unreadable:
        told = {"IBuilderConfig.create_timing_cache": lambda data: None if data else SimpleNamespace()}
    trt, _ = built(version, tmp_path, answers=told)
    assert trt.made("IBuilderConfig.create_timing_cache") == [(b"foreign",), (b"",)]
    assert [path.read_bytes() for path in (tmp_path / "timings").iterdir()] == [b"cache"]


@pytest.mark.parametrize("version", VERSIONS)
def test_plan_is_kept_where_there_is_no_timing_cache(tmp_path: Path, version: str) -> None:
    none = {"IBuilderConfig.set_timing_cache": lambda *_: False, "IBuilderConfig.get_timing_cache": lambda: None}
    built(version, tmp_path, answers=none)
    assert not (tmp_path / "timings").exists()


def test_plan_is_kept_where_the_timings_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "timings").write_text("no folder")
    built(NEW, tmp_path)
    assert re.search(r"timing\..*\.cache: cannot be written \(.*\); the next build times", capsys.readouterr().err)


def test_types_are_flags_only_where_the_graph_cannot_say_them(tmp_path: Path) -> None:
    old, _ = built(OLD, tmp_path, types=("FLOAT16", "INT8"))
    assert flags(old) == {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"}
    # What a recipe wants in FP32 beside its pairs stays in FP32.
    plain, _ = built(OLD, tmp_path, types=("INT8",))
    assert flags(plain) == {"INT8", "OBEY_PRECISION_CONSTRAINTS"}
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
    ("version", "sources", "told"),
    [
        (OLD, [], [("DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805", True)]),
        (OLD, ["JIT_CONVOLUTIONS"], [("DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805", True)]),
        (OLD, ["CUBLAS", "JIT_CONVOLUTIONS"], []),
        (OLD, None, []),
        (NEW, [], []),
        (NEWEST, [], []),
    ],
)
def test_core_loads_no_library_that_is_left_out(
    tmp_path: Path, version: str, sources: list[str] | None, told: list[tuple[str, bool]]
) -> None:
    trt, _ = built(version, tmp_path, tactic_sources=sources)
    set_ = [(feature.name, on) for feature, on in trt.made("IBuilderConfig.set_preview_feature")]
    assert set_ == told


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("errors", "limit", "message"),
    [
        (SHORT_85, 64 << 20, "the workspace of 64 MiB is too small; raise engine.tensorrt.workspace_mib"),
        (SHORT_84, 64 << 20, "the workspace of 64 MiB is too small; raise engine.tensorrt.workspace_mib"),
        (SHORT_85, None, "the GPU's memory is too small; free some of it, or lower the profiles' largest batch"),
    ],
)
def test_small_workspace_is_said(
    tmp_path: Path, version: str, errors: list[str], limit: int | None, message: str
) -> None:
    with pytest.raises(runner.PlanError) as raised:
        built(version, tmp_path, errors=errors, workspace_bytes=limit)
    assert message in str(raised.value)
    assert " ".join(errors[0].split()) in str(raised.value)
    assert "engine != nullptr" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_first_error_of_a_build_is_told_beside_the_last(tmp_path: Path) -> None:
    errors = ["the cause", "Assertion engine != nullptr failed."]
    with pytest.raises(runner.PlanError, match=r"builds no plan \(the cause; Assertion engine != nullptr failed\.\)$"):
        built(NEW, tmp_path, errors=errors)


@pytest.mark.parametrize(
    ("version", "settings", "message"),
    [
        (
            OLD,
            {"tactic_sources": [], "answers": {"IBuilderConfig.set_tactic_sources": lambda *_: False}},
            r"tactic_sources: TensorRT 8\.5\.3\.1 refuses \[\]",
        ),
        (
            NEW,
            {"compute_capabilities": ["8.0"]},
            r"NVIDIA H200: must have a compute capability of \['8\.0'\], has 9\.0",
        ),
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
        # Of TensorRT 8.5.3.1's libnvinfer.
        ("Row major linear FP16 format (kLINEAR)", "FP16"),
        ("Row major linear BOOL", "BOOL"),
        ("Row major linear Int32", "INT32"),
        ("Channel major FP16 format where channel % 4 == 0", "FP16"),
        ("Channel major FP16 format where channel == 1 and column stride % 32 == 0", "FP16"),
        ("Channel major Int8 format where channel == 4 and column stride % 32 == 0", "INT8"),
        ("Channel major FP32 format with 3 spatial dimensions", "FP32"),
        ("Four wide channel vectorized row major INT8 format (kCHW4)", "INT8"),
        ("a format of a later release", "a format of a later release"),
    ],
)
def test_types_of_layers_are_read_in_every_releases_words(said: str, kind: str) -> None:
    for key in ("Format/Datatype", "DataType"):
        text = json.dumps({"Layers": [{"Outputs": [{key: said}]}]})
        trt = Recorded(OLD, {"EngineInspector.get_engine_information": lambda _, text=text: text})
        engine, _ = runner.load(trt, b"plan")
        assert runner.layers(trt, engine)["by_type"] == {kind: 1}


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
    assert runner.layers(trt, engine)["by_type"] == {"FP16": 2, "?": 1}


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
    """By a clock of its own: how busy the machine is decides nothing."""
    now = [0.0]
    ran: list[str] = []
    monkeypatch.setattr(runner, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(runner, "TIMED_S", 0.1)

    def taking(name: str, seconds: float) -> Callable[[object], None]:
        def run(feed: object) -> None:
            ran.append(name)
            # Something else has the machine once.
            now[0] += 1.0 if ran.count(name) == 8 else seconds

        return run

    times = runner.timed({"slow": taking("slow", 0.004), "fast": taking("fast", 0.001)}, INPUTS, [(1, 8), (2, 8)])
    assert times == pytest.approx({"slow": 8, "fast": 2})
    assert ran[:16] == [*5 * ["slow"], *5 * ["fast"], *3 * ["slow", "fast"]]


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
