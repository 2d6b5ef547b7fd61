"""What a visit does without a GPU: measures in turn, writes as it comes, survives failures, says what is missing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from visit import parity, plans, prepare, table
from visit.__main__ import main
from visit.contest import (
    ASK_S,
    ROUNDS,
    WARM_UP_S,
    RefusalError,
    Worker,
    WorkerError,
    contest,
    image,
    module,
    path_of_package,
    run_for,
    started,
)  # fmt: skip
from visit.records import IncompleteError, read


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("visit")
    prepare.shape("tiny", folder)
    return folder


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([path_of_package(), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def lines(folder: Path) -> dict[str, dict[str, object]]:
    return {entry["item"]: entry for entry in read(folder)}


@pytest.fixture(scope="module")
def workers(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    graph = plans.filled(packed, tmp_path_factory.mktemp("work"), "tiny", "int8")
    peer = [sys.executable, *module("torch_worker"), "tiny", "--device", "cpu", "--precision", "fp32"]
    runtime = [sys.executable, *module("onnxruntime_worker"), str(graph), "--provider", "CPUExecutionProvider"]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([path_of_package(), *sys.path])}
    with (
        Worker(peer, ready_s=120, environment=environment) as torch_worker,
        Worker(runtime, ready_s=120, environment=environment) as runtime_worker,
    ):
        yield {"torch": torch_worker, "ONNX Runtime": runtime_worker}


def two_minutes() -> float:
    return 120.0


class Timed:
    """A worker whose answers take as long as said, on a clock of the test's; it keeps the limits that it was given."""

    def __init__(self, clock: list[float], takes_s: Callable[[], float]) -> None:
        self.clock, self.takes_s, self.limits = clock, takes_s, list[float]()

    def ask(self, request: Mapping[str, object], *, within_s: float) -> dict[str, float]:
        self.limits.append(within_s)
        takes_s = self.takes_s()
        self.clock[0] += min(takes_s, within_s)
        if takes_s > within_s:
            raise WorkerError(f"the worker did not answer within {within_s:.0f} s")
        return {"sequences_per_s": 100.0}


class TestContest:
    def test_every_engine_is_measured(self, workers: dict[str, Worker]) -> None:
        found = contest(workers, 2, 32, left_s=two_minutes)["sequences_per_s"]
        assert [*found] == ["torch", "ONNX Runtime"]
        for figures in found.values():
            assert 0 < figures["low"] <= figures["median"] <= figures["high"]

    def test_what_cannot_be_run_is_said_and_the_others_are_measured(self, workers: dict[str, Worker]) -> None:
        # Beyond the positions that the encoder has.
        with pytest.raises(IncompleteError, match=r"torch: .*Error.*; ONNX Runtime: .*Error") as info:
            contest(workers, 1, 600, left_s=two_minutes)
        assert all("Error" in figures["error"] for figures in info.value.figures["sequences_per_s"].values())
        assert "median" in contest(workers, 1, 32, left_s=two_minutes)["sequences_per_s"]["torch"]

    def test_what_one_worker_takes_is_not_taken_from_the_others(self) -> None:
        clock = [0.0]
        compiling = Timed(clock, iter([85.0, *[1.0] * ROUNDS]).__next__)
        ours = Timed(clock, lambda: 0.5)
        found = contest({"compiled": compiling, "plan": ours}, 1, 32, left_s=lambda: 500.0 - clock[0])
        assert {figures["median"] for figures in found["sequences_per_s"].values()} == {100.0}
        assert ours.limits == [WARM_UP_S, *[ASK_S] * ROUNDS]

    def test_worker_that_hangs_costs_its_own_limit_and_its_own_figure(self) -> None:
        clock = [0.0]
        hanging, ours = Timed(clock, lambda: 1e9), Timed(clock, lambda: 0.5)
        with pytest.raises(IncompleteError, match="hangs: the worker did not answer within 90 s") as info:
            contest({"hangs": hanging, "plan": ours}, 1, 32, left_s=lambda: 500.0 - clock[0])
        assert info.value.figures["sequences_per_s"]["plan"]["median"] == 100.0
        assert (len(hanging.limits), clock[0]) == (1, WARM_UP_S + 0.5 * (ROUNDS + 1))

    def test_nothing_outlasts_the_call(self) -> None:
        clock = [0.0]
        hanging = Timed(clock, lambda: 1e9)
        with pytest.raises(IncompleteError, match="did not answer within 7 s"):
            contest({"hangs": hanging}, 1, 32, left_s=lambda: max(0.0, 7.0 - clock[0]))
        assert clock[0] == 7.0

    def test_worker_that_has_not_started_in_time_leaves_the_point_open(self) -> None:
        with pytest.raises(IncompleteError, match="late: not ready"):
            contest({"plan": Timed([0.0], lambda: 0.5)}, 1, 32, left_s=two_minutes, late={"late": "not ready"})

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

    def test_worker_that_has_died_is_said_with_its_last_words(self) -> None:
        dies = "import sys; print('{}', flush=True); sys.exit('Error: a\\nCUDA out of memory')"
        with Worker([sys.executable, "-c", dies], ready_s=60) as worker:
            for _ in range(2):
                with pytest.raises(WorkerError, match=r"ended with status 1 \(CUDA out of memory\)"):
                    worker.ask({"batch": 1}, within_s=20)

    def test_workers_start_side_by_side_and_failures_are_told_apart(self) -> None:
        code = {"a": "print('{}', flush=True); input()", "b": """print('{"error": "no"}')""", "c": ""}
        commands = {name: [sys.executable, "-c", said] for name, said in code.items()} | {"d": ["/no/such/python"]}
        found, failed = started(commands, {}, ready_s=60)
        with found["a"]:
            assert [*found] == ["a"]
            assert {name: type(why) for name, why in failed.items()} == {
                "b": RefusalError, "c": WorkerError, "d": WorkerError,
            }  # fmt: skip
        assert str(failed["d"]) == "/no/such/python: No such file or directory"

    def test_worker_that_cannot_load_says_why(self, packed: Path) -> None:
        graph = packed / "shapes" / "tiny" / "model.fp32.onnx"
        with pytest.raises(RefusalError, match=r"ProviderError: ONNX Runtime .* has no CUDAExecutionProvider"):
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
def test_every_part_ends_without_a_gpu_and_says_why(packed: Path, tmp_path: Path) -> None:
    """The whole road of a visit, as far as it goes: graphs are filled, builders and workers started."""
    options = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--shapes", "tiny"]
    assert main(["run", str(packed), *options, "--budget-s", "120", "--python", sys.executable]) == 0
    found = lines(tmp_path / "out")
    assert {entry["status"] for entry in found.values()} == {"failed", "not run"}
    assert "TensorRT is needed" in str(found["tiny: plan fp16"]["why"])
    assert "Error" in str(found["matrix rate fp16"]["why"])
    text = table.render(tmp_path / "out")
    assert "tiny: plan fp16: failed" in text
    assert all(line in text for line in table.NOT_SHOWN)


SAMPLE = [
    {"item": "matrix rate fp16", "status": "done", "device": "TEST DATA", "torch": "0", "side": 8,
     "tera_operations_per_s": 1000.0},
    {"item": "large: plan fp16.384", "status": "done", "built_in_s": 60.0, "bytes": 1 << 20},
    {"item": "large: parity fp16.384", "status": "done", "cosine": 0.99991, "relative_error": 0.0123},
    {"item": "large: plan int8.384", "status": "failed", "why": "TEST DATA: no kernel"},
    {"item": "large: fp16 32x384", "status": "done", "sequences_per_s": {
        "TensorRT fp16": {"median": 1000.0, "low": 990.0, "high": 1010.0}}},
    {"item": "large: peers 32x384", "status": "failed", "why": "ONNX Runtime CUDA, FP32: TEST DATA: no memory",
     "sequences_per_s": {
        "TensorRT fp16": {"median": 1000.0, "low": 990.0, "high": 1010.0},
        "torch FP16, SDPA": {"median": 500.0, "low": 490.0, "high": 510.0},
        "ONNX Runtime CUDA, FP32": {"error": "TEST DATA: no memory"}}},
    {"item": "large fp16.384: engine, 64 in flight", "status": "done", "in_flight": 64,
     "requests_per_s": 900.0, "p50_ms": 70.0, "p99_ms": 99.5},
]  # fmt: skip


def test_tables_have_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    (tmp_path / "visit.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in SAMPLE))
    text = table.render(tmp_path)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert ["large", "fp16.384", "60", "1", "0.99991", "0.0123", "parity done"] in rows
    assert ["large", "int8.384", "", "", "", "", "failed"] in rows
    # 24 layers of 2 x 12 x 1024^2 operations a token, and attention's own, 384 tokens, 1,000 a second: 0.246e15.
    assert ["32x384", "1,000 [990–1,010]", "FP16 25%"] in rows
    assert ["32x384", "1,000 [990–1,010]", "500 [490–510]", "failed", "FP16 25%"] in rows
    assert ["large fp16.384", "engine", "64", "900", "70.0", "99.5", "90%"] in rows
    assert "- large: plan int8.384: failed: TEST DATA: no kernel" in text
    assert "- large: peers 32x384: failed: ONNX Runtime CUDA, FP32: TEST DATA: no memory" in text


def test_the_images_own_python_gets_nothing_of_the_kit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/kit/python")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/kit/lib:/kit/python/lib:/driver")
    monkeypatch.setenv("PATH", "/kit/python/bin:/usr/bin")
    found = image()
    assert "PYTHONHOME" not in found
    assert (found["LD_LIBRARY_PATH"], found["PATH"]) == ("/driver", "/usr/bin")
    assert found["PYTHONPATH"] == path_of_package()


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


def test_graphs_are_filled_beside_the_first_parts(packed: Path, tmp_path: Path) -> None:
    assert main(["fill", str(packed), "--work", str(tmp_path), "--shapes", "tiny"]) == 0
    found = sorted(path.name for path in (tmp_path / "shapes" / "tiny").iterdir())
    assert found == ["model.fp32.onnx", "model.int8.onnx"]
