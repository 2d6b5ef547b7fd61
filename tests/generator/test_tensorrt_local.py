"""Where TensorRT and a GPU are, a build makes its plan as `build_plan.sh` does elsewhere; on doubles of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from computed_plan import ComputedPlan
from plan_machines import Machine
from tiny_sources import write_task
from tritonpress_generator import cli, repository
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.infer import Infer
from tritonpress_generator.plans import pending, runner

INPUTS = ("input_ids", "attention_mask")
LENGTH, LABELS = 16, 3


class Here(Machine):
    """A machine whose plans answer as the graph that was parsed last, by ONNX Runtime; knows what was timed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, times: dict[str, float], **changes: Any) -> None:
        self.timed: list[tuple[Any, ...]] = []
        graphs: list[Infer] = []

        def parse(data: bytes) -> bool:
            graphs.append(session_infer(data))
            return True

        def compute(inputs: Any) -> dict[str, Any]:
            return graphs[-1]({name: tensor.copy() for name, tensor in inputs.items()})

        plan = ComputedPlan(
            profiles=[dict.fromkeys(INPUTS, ((1, LENGTH), (8, LENGTH), (8, LENGTH)))],
            inputs=dict.fromkeys(INPUTS, ("INT32", (-1, -1))),
            outputs={"logits": ("FLOAT", (-1, LABELS))},
            compute=compute,
            output_shape=lambda shapes, _: (shapes["input_ids"][0], LABELS),
        )
        super().__init__(monkeypatch, plan=plan, **{"OnnxParser.parse": parse, **changes})

        def timed(runners: dict[str, Any], inputs: Any, shapes: Any) -> dict[str, float]:
            self.timed.append((list(runners), list(inputs), shapes))
            for run in runners.values():
                run(dict.fromkeys(inputs, np.ones(tuple(shapes[0]), np.int32)))
            return times

        monkeypatch.setattr(runner, "timed", timed)
        # The table's times are of no interest, but that the engines take its sequence is.
        monkeypatch.setattr("tritonpress_generator.build.latency_ms", lambda infer, feed: 1.0 if infer(feed) else 0.0)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def build(folder: Path, **engine: Any) -> int:
    recipe = write_task(folder, "classification")
    text = yaml.safe_load(recipe.read_text()) | {"engine": {"tensorrt": engine}, "graph": []}
    text["serve"] |= {"lengths": [LENGTH], "max_length": LENGTH}
    text["serve"].pop("steps")
    recipe.write_text(yaml.safe_dump(text))
    return cli.main(["build", str(recipe), "--out", str(folder / "out")])


def version_folder(folder: Path) -> Path:
    (found,) = pending.folders(folder / "out", repository.read_manifest(folder / "out", "classification"))
    return found


def test_plan_has_its_stamp_its_report_and_no_timings_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Here(monkeypatch, tmp_path, {"fp32": 3.0, "fp16": 2.0})
    assert build(tmp_path) == 0
    folder = version_folder(tmp_path)
    stamp = json.loads((folder / "model.plan.json").read_text())
    assert (stamp["rung"], stamp["layers"], stamp["compute_capability"]) == ("fp16", {"FP16": 1}, "9.0")
    assert stamp["plan"]
    manifest = repository.read_manifest(tmp_path / "out", "classification")
    assert manifest["measured"]["plans"] == {"model.plan": stamp}
    # What its kernels round changes with the batch, as of a plan that is gated where it is served.
    assert manifest["golden"]["score_tolerance"] == 0.02
    assert json.loads((folder / "layers.fp16.json").read_text())["by_type"] == {"FP16": 1}
    assert not list((tmp_path / "out").rglob("*.cache"))
    # The longest text that is served has fewer tokens than the table's sequence has elsewhere.
    assert f"ms at {LENGTH} tokens" in capsys.readouterr().out
    # The second rung begins with what the first has timed, and so does the next build.
    assert here.trt.made("IBuilderConfig.create_timing_cache") == [(b"",), (b"timings",)]
    (timings,) = (tmp_path / "cache").rglob("*.cache")
    assert timings.name == f"timing.NVIDIA-H200-9.0-TensorRT-{here.trt.__version__}.cache"


def test_precisions_are_timed_on_what_will_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Here(monkeypatch, tmp_path, {"fp32": 2.0, "fp16": 3.0})
    assert build(tmp_path) == 0
    settings = json.loads((version_folder(tmp_path) / "plan.json").read_text())
    assert settings["shapes"] == [[1, LENGTH], [8, LENGTH]]
    assert here.timed == [(["fp32", "fp16"], list(INPUTS), settings["shapes"])]
    assert "refused fp16: must be faster than fp32, which takes 2.000 ms; takes 3.000 ms" in capsys.readouterr().out
    assert json.loads((version_folder(tmp_path) / "model.plan.json").read_text())["rung"] == "fp32"


@pytest.mark.parametrize(
    ("change", "engine", "message"),
    [
        ({}, {"compute_capabilities": ["8.0"]}, "engine.tensorrt: NVIDIA H200: must have a compute capability of"),
        ({"IExecutionContext.execute_async_v3": lambda *_: False}, {}, "model.plan: TensorRT cannot run the plan"),
        ({"ICudaEngine.create_execution_context": lambda: None}, {}, "engine.tensorrt: TensorRT makes no execution"),
    ],
)
def test_what_cannot_be_built_or_run_here_is_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    engine: dict[str, Any],
    message: str,
) -> None:
    Here(monkeypatch, tmp_path, {"fp32": 3.0, "fp16": 2.0}, **change)
    assert build(tmp_path, **engine) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "classification").exists()


def test_each_kind_of_gpu_has_a_plan_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Here(monkeypatch, tmp_path, {"fp32": 3.0})
    assert build(tmp_path, precision="fp32", compute_capabilities=["8.0", "9.0"]) == 0
    assert [path.name for path in version_folder(tmp_path).glob("*.plan")] == ["model_9.0.plan"]
