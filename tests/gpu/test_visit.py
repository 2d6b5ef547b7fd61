"""What a visit does without a GPU: measures in turn, writes as it comes, survives failures, says what is missing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from visit import parity, plans, prepare, serving, steps, table
from visit.__main__ import main
from visit.contest import Worker, WorkerError, contest, module, run_for
from visit.records import Records, read


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("visit")
    prepare.shape("tiny", folder)
    return folder


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([steps.path_of_package(), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def records(folder: Path, *, step: str = "fp16", budget_s: float = 60.0) -> Records:
    return Records(step, folder / "work", folder / "out", budget_s)


def lines(folder: Path) -> dict[str, dict[str, object]]:
    return {entry["item"]: entry for entry in read(folder)}


def failing() -> dict[str, object]:
    raise ZeroDivisionError("a\nkernel")


class TestRecords:
    def test_a_failure_is_a_line_and_not_the_end(self, tmp_path: Path) -> None:
        step = records(tmp_path)
        step.item("first", failing)
        step.item("second", lambda: {"ms": 2.0})
        found = lines(tmp_path / "out")
        assert found["first"]["status"] == "failed"
        assert found["first"]["why"] == "ZeroDivisionError: a kernel"
        assert (found["second"]["status"], found["second"]["ms"]) == ("done", 2.0)

    def test_what_is_done_is_passed_over_by_the_next_call(self, tmp_path: Path) -> None:
        step = records(tmp_path)
        step.item("first", lambda: {"ms": 1.0})
        step.item("second", failing)
        again = Records("fp16", tmp_path / "work", tmp_path / "another", 60.0)
        again.item("first", failing)
        again.item("second", lambda: {"ms": 2.0})
        assert [*lines(tmp_path / "another")] == ["second"]
        assert {entry["status"] for entry in lines(tmp_path / "work").values()} == {"done"}

    def test_what_has_no_time_is_not_begun(self, tmp_path: Path) -> None:
        records(tmp_path, budget_s=5).item("long", failing, needs_s=30)
        assert lines(tmp_path / "out")["long"]["why"] == "needs 30 s, the step has 5 s left"

    def test_same_folder_gets_each_line_once(self, tmp_path: Path) -> None:
        Records("fp16", tmp_path, tmp_path, 60.0).item("first", lambda: {})
        assert len((tmp_path / "fp16.jsonl").read_text().splitlines()) == 1


@pytest.fixture(scope="module")
def workers(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    graph = plans.filled(packed, tmp_path_factory.mktemp("work"), "tiny", "int8")
    peer = [sys.executable, *module("torch_worker"), "tiny", "--device", "cpu", "--precision", "fp32"]
    runtime = [sys.executable, *module("onnxruntime_worker"), str(graph), "--provider", "CPUExecutionProvider"]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([steps.path_of_package(), *sys.path])}
    with (
        Worker(peer, ready_s=120, environment=environment) as torch_worker,
        Worker(runtime, ready_s=120, environment=environment) as runtime_worker,
    ):
        yield {"torch": torch_worker, "ONNX Runtime": runtime_worker}


class TestContest:
    def test_every_engine_is_measured(self, workers: dict[str, Worker]) -> None:
        found = contest(workers, 2, 32, within_s=120)["sequences_per_s"]
        assert [*found] == ["torch", "ONNX Runtime"]
        for figures in found.values():
            assert 0 < figures["low"] <= figures["median"] <= figures["high"]

    def test_what_cannot_be_run_is_said_and_the_others_are_measured(self, workers: dict[str, Worker]) -> None:
        # Beyond the positions that the encoder has.
        found = contest(workers, 1, 600, within_s=120)["sequences_per_s"]
        assert all("Error" in figures["error"] for figures in found.values())
        assert "median" in contest(workers, 1, 32, within_s=120)["sequences_per_s"]["torch"]

    def test_matrix_rate(self, workers: dict[str, Worker]) -> None:
        for kind in ("fp32", "int8"):
            found = workers["torch"].ask({"matrix": kind, "side": 128}, within_s=60)
            assert found["tera_operations_per_s"] > 0

    def test_worker_that_is_late_is_ended(self) -> None:
        quick = [sys.executable, "-c", "print('{}', flush=True); import time; input(); time.sleep(60)"]
        with Worker(quick, ready_s=60) as worker:
            with pytest.raises(WorkerError, match="did not answer within 0 s"):
                worker.ask({"batch": 1}, within_s=0.1)
            with pytest.raises(WorkerError, match=r"ended with status|did not answer"):
                worker.ask({"batch": 1}, within_s=5)

    def test_worker_that_has_died_is_said(self) -> None:
        with Worker([sys.executable, "-c", "print('{}', flush=True)"], ready_s=60) as worker:
            for _ in range(2):
                with pytest.raises(WorkerError, match="ended with status 0; see its messages"):
                    worker.ask({"batch": 1}, within_s=20)

    def test_worker_that_cannot_load_says_why(self, packed: Path) -> None:
        graph = packed / "shapes" / "tiny" / "model.fp32.onnx"
        with pytest.raises(WorkerError, match=r"ProviderError: ONNX Runtime .* has no CUDAExecutionProvider"):
            Worker([sys.executable, *module("onnxruntime_worker"), str(graph)], ready_s=120)

    def test_slices_last_as_long_as_asked(self) -> None:
        counts: list[int] = []

        def run(count: int) -> float:
            counts.append(count)
            return count * 1e-3

        found = run_for(0.5, 8, run)
        assert counts[-1] == 500
        assert found["sequences_per_s"] == pytest.approx(8000)


FEED = {"attention_mask": np.array([[1, 1, 1], [1, 1, 0]], np.int32)}
ANSWER = np.array([[1.0, -2.0, 0.5], [0.3, 0.4, 9.0]], np.float32)


def differences(got: np.ndarray) -> dict[str, float]:
    return parity.differences(lambda _: {"start": got}, [(FEED, {"start": ANSWER})])


def test_padding_does_not_count() -> None:
    got = ANSWER.copy()
    got[1, 2] = -5
    assert differences(got) == {"cosine": pytest.approx(1.0), "relative_error": 0.0}


def test_values_of_a_sequence_all_count() -> None:
    answer = np.array([[0.2, 0.8], [0.9, 0.1]], np.float32)
    for wrong in (answer, answer[::-1]):
        found = parity.differences(lambda _, wrong=wrong: {"scores": wrong}, [(FEED, {"scores": answer})])
        assert (found["cosine"] > 0.999) == (wrong is answer)


@pytest.mark.parametrize("wrong", [1.3, float("nan")])
def test_one_wrong_answer_is_refused(wrong: float) -> None:
    got = ANSWER.copy()
    got[0, 2] = wrong
    for rung in parity.BOUNDS:
        with pytest.raises(parity.ParityError, match=f"{rung}: cosine must be at least"):
            parity.check(rung, differences(got))


def test_rounding_is_not() -> None:
    parity.check("fp16", differences(ANSWER.astype(np.float16).astype(np.float32)))


@pytest.mark.slow
def test_every_step_ends_without_a_gpu_and_says_why(packed: Path, tmp_path: Path) -> None:
    """The whole road of a visit, as far as it goes: graphs are filled, builders and workers started."""
    steps_of = {"parity": [], "fp16": ["--python", sys.executable], "int8": [], "serving": []}
    for step, more in steps_of.items():
        options = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--budget-s", "60"]
        assert main([step, str(packed), *options, *more]) == 0
    found = lines(tmp_path / "out")
    assert {entry["status"] for entry in found.values()} == {"failed", "not run"}
    assert "TensorRT is needed" in str(found["tiny: plan fp16"]["why"])
    assert "WorkerError" in str(found["matrix rate fp16"]["why"])
    text = table.render(tmp_path / "out")
    assert "tiny: plan fp16: failed" in text
    assert all(line in text for line in table.NOT_SHOWN)


SAMPLE = [
    {"step": "fp16", "item": "matrix rate fp16", "status": "done", "device": "TEST DATA", "torch": "0", "side": 8,
     "tera_operations_per_s": 1000.0},
    {"step": "parity", "item": "large: plan fp16", "status": "done", "built_in_s": 60.0, "bytes": 1 << 20},
    {"step": "fp16", "item": "large: plan fp16", "status": "done", "built_in_s": 60.0, "bytes": 1 << 20},
    {"step": "fp16", "item": "large: parity fp16", "status": "done", "cosine": 0.99991, "relative_error": 0.0123},
    {"step": "int8", "item": "large: plan int8", "status": "failed", "why": "TEST DATA: no kernel"},
    {"step": "fp16", "item": "large: 32x384", "status": "done", "sequences_per_s": {
        "TensorRT fp16": {"median": 1000.0, "low": 990.0, "high": 1010.0},
        "torch FP16, SDPA": {"median": 500.0, "low": 490.0, "high": 510.0},
        "ONNX Runtime CUDA, FP32": {"error": "TEST DATA: no provider"}}},
    {"step": "serving", "item": "large fp16: engine, 64 in flight", "status": "done", "in_flight": 64,
     "requests_per_s": 900.0, "p50_ms": 70.0, "p99_ms": 99.5},
]  # fmt: skip


def test_tables_have_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    for entry in SAMPLE:
        with (tmp_path / f"{entry['step']}.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
    text = table.render(tmp_path)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert ["large", "fp16", "60", "1", "0.99991", "0.0123", "parity done"] in rows
    assert sum(row[:2] == ["large", "fp16"] for row in rows) == 1
    assert ["large", "int8", "", "", "", "", "failed"] in rows
    # 24 layers of 2 x 12 x 1024^2 operations a token, and attention's own, 384 tokens, 1,000 a second: 0.246e15.
    assert ["32x384", "1,000 [990–1,010]", "500 [490–510]", "failed", "FP16 25%"] in rows
    assert ["large fp16", "engine", "64", "900", "70.0", "99.5", "90%"] in rows
    assert "- int8, large: plan int8: failed: TEST DATA: no kernel" in text
    assert "- fp16, large: 32x384, ONNX Runtime CUDA, FP32: TEST DATA: no provider" in text


def test_repository_serves_the_plan_that_it_is_given(tmp_path: Path) -> None:
    version = tmp_path / "source" / "repository" / "qa_engine_0" / "1"
    version.mkdir(parents=True)
    (version / "plan.json").write_text("{}")
    (version / "model.fp32.onnx").write_bytes(b"graph")
    plan = tmp_path / "model.int8.plan"
    plan.write_bytes(b"a plan")
    (tmp_path / "model.int8.plan.json").write_text('{"rung": "int8"}')
    folder, engine = serving.repository(tmp_path / "source", plan, tmp_path / "served")
    assert engine == "qa_engine_0"
    assert (folder / engine / "1" / "model.plan").read_bytes() == b"a plan"
    assert json.loads((folder / engine / "1" / "model.plan.json").read_text()) == {"rung": "int8"}
    assert not list(folder.rglob("*.onnx"))


def test_the_images_own_python_gets_nothing_of_the_kit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/kit/python")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/kit/lib:/kit/python/lib:/driver")
    monkeypatch.setenv("PATH", "/kit/python/bin:/usr/bin")
    found = steps.image()
    assert "PYTHONHOME" not in found
    assert (found["LD_LIBRARY_PATH"], found["PATH"]) == ("/driver", "/usr/bin")
    assert found["PYTHONPATH"] == steps.path_of_package()


def test_plans_without_tensorrt_are_refused_by_the_projects_builder(packed: Path, tmp_path: Path) -> None:
    settings = tmp_path / "plan.json"
    settings.write_text(json.dumps({"rungs": []}))
    with pytest.raises(plans.BuildError, match=r"status 2 .*TensorRT is needed"):
        plans.run_builder(settings, within_s=60)


def test_filled_graph_is_made_once(packed: Path, tmp_path: Path) -> None:
    path = plans.filled(packed, tmp_path, "tiny", "fp16")
    assert path.name == "model.fp32.onnx"
    onnx.checker.check_model(onnx.load(path), full_check=True)
    before = path.stat().st_mtime_ns
    assert plans.filled(packed, tmp_path, "tiny", "fp32").stat().st_mtime_ns == before


def test_graphs_are_filled_beside_the_first_steps(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "SHAPES", ("tiny",))
    assert main(["fill", str(packed), "--work", str(tmp_path)]) == 0
    found = sorted(path.name for path in (tmp_path / "shapes" / "tiny").iterdir())
    assert found == ["model.fp32.onnx", "model.int8.onnx"]
