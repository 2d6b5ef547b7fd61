"""What `build_plan` leaves of a ladder: a plan that was built stays, whatever comes after; on doubles of TensorRT."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plan_machines import INPUTS, Machine
from recorded_tensorrt import VERSIONS
from tritonpress_generator.plans import builder

TIMES = {"fp32": 3.0, "fp16": 2.0}


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> int:
    """Runs the command on a ladder of FP32 and FP16, of which `TIMES` is what is measured."""
    monkeypatch.setattr(builder, "timed", lambda runners, *_: {name: TIMES[name] for name in runners})
    for name in TIMES:
        (folder / f"model.{name}.onnx").write_bytes(name.encode())
    text = json.dumps(
        {
            "rungs": [{"name": name, "model": f"model.{name}.onnx", "types": []} for name in TIMES],
            "inputs": list(INPUTS),
            "profiles": [{"batch": [1, 4, 4], "length": [size] * 3} for size in (8, 24)],
            "shapes": [[1, 8]],
            **settings,
        }
    )
    (folder / "plan.json").write_text(text)
    return builder.main([str(folder / "plan.json")])


def stamp(folder: Path, rung: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"model.{rung}.plan.json").read_text())
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_ladder_is_built_with_stamps_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Machine(monkeypatch, version=version)
    assert run(tmp_path, monkeypatch) == 0
    for rung in TIMES:
        assert (tmp_path / f"model.{rung}.plan").read_bytes() == b"plan"
        about = stamp(tmp_path, rung)
        assert about["plan"] == hashlib.sha256(b"plan").hexdigest()
        assert about["graph"] == hashlib.sha256(rung.encode()).hexdigest()
        assert (about["gpu"], about["compute_capability"], about["layers"]) == ("NVIDIA H200", "9.0", {"FP16": 1})
        assert "layers_problem" not in about
        assert len(json.loads((tmp_path / f"layers.{rung}.json").read_text())["layers"]) == 1
    assert (tmp_path / "rungs.txt").read_text() == "fp16\nfp32\n"
    assert json.loads((tmp_path / "rungs.json").read_text())["not_run"] == {}
    assert (tmp_path / f"timing.NVIDIA-H200-9.0-TensorRT-{version}.cache").read_bytes() == b"timings"
    assert "layers by type: {'FP16': 1}" in capsys.readouterr().out


def test_what_cannot_be_written_is_a_line_and_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Machine(monkeypatch)
    (tmp_path / "rungs.json").mkdir()
    assert run(tmp_path, monkeypatch) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("build_plan: ") and "rungs.json" in said and "make room, or allow it" in said
    assert {path.name for path in tmp_path.glob("rungs.*")} == {"rungs.json"}


def raised(*_: Any) -> None:
    raise RuntimeError("the inspector\nfails")


@pytest.mark.parametrize(
    "change",
    [
        {"EngineInspector.get_engine_information": lambda _: "no JSON"},
        {"EngineInspector.get_engine_information": lambda _: None},
        {"EngineInspector.get_engine_information": lambda _: "[]"},
        {"EngineInspector.get_engine_information": lambda _: '{"Layers": [{"Outputs": [7]}]}'},
        {"EngineInspector.get_engine_information": raised},
        {"ICudaEngine.create_engine_inspector": lambda: None},
    ],
)
def test_report_that_cannot_be_read_costs_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Machine(monkeypatch, **change)
    assert run(tmp_path, monkeypatch) == 0
    assert (tmp_path / "model.fp16.plan").read_bytes() == b"plan"
    assert stamp(tmp_path, "fp16")["layers"] == {}
    assert "TensorRT's report of the layers cannot be read" in stamp(tmp_path, "fp16")["layers_problem"]
    assert "\n" not in stamp(tmp_path, "fp16")["layers_problem"]
    assert (tmp_path / "rungs.txt").read_text() == "fp16\nfp32\n"
    assert "report of the layers cannot be read" in capsys.readouterr().out


def test_plan_that_cannot_be_run_is_kept_and_the_others_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch)

    def no_memory() -> None:
        del machine.trt.answers["ICudaEngine.create_execution_context"]

    machine.trt.answers["ICudaEngine.create_execution_context"] = no_memory
    assert run(tmp_path, monkeypatch) == 0
    assert (tmp_path / "model.fp32.plan").read_bytes() == b"plan"
    assert stamp(tmp_path, "fp32")["layers_problem"] == "the plan was not loaded yet"
    assert (tmp_path / "rungs.txt").read_text() == "fp16\n"
    not_run = json.loads((tmp_path / "rungs.json").read_text())["not_run"]
    assert list(not_run) == ["fp32"]
    assert "makes no execution context" in not_run["fp32"]
    assert "model.fp32.plan is built, and cannot be run here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "settings", "message", "kept"),
    [
        ({"ICudaEngine.create_execution_context": lambda: None}, {}, "fp32.plan is built, and cannot be run", True),
        (
            {"Builder.build_serialized_network": lambda *_: None},
            {},
            "model.fp32.onnx: TensorRT .* builds no plan",
            False,
        ),
        ({}, {"compute_capabilities": ["8.0"]}, "must have a compute capability of", False),
    ],
)
def test_ladder_without_a_plan_that_runs_is_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Callable[..., Any]],
    settings: dict[str, Any],
    message: str,
    kept: bool,
) -> None:
    Machine(monkeypatch, **change)
    assert run(tmp_path, monkeypatch, **settings) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.partition(" .* ")[0] in line
    assert (tmp_path / "model.fp32.plan").exists() == kept
    assert not (tmp_path / "rungs.txt").exists()
