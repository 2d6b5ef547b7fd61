"""One call of a visit: its order and limits, and that another goes on. Builders, workers and the server are doubles."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from visit import plans, serving, steps
from visit.__main__ import main
from visit.records import FILE, Records, read
from visit.shapes import LENGTHS

WORKER = """
import json, pathlib, sys
with open(sys.argv[0] + ".started", "a") as file:
    file.write(" ".join(sys.argv[1:]) + chr(10))
print(json.dumps({"device": "TEST DATA", "torch": "0"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "answer" in request:
        pathlib.Path(request["answer"][-1]).write_bytes(b"answers")
    answer = {"sequences_per_s": 100.0, "cosine": 1.0, "relative_error": 0.0, "tera_operations_per_s": 1.0, "side": 8}
    print(json.dumps(answer), flush=True)
"""
STAMP = dict.fromkeys(("gpu", "tensorrt", "driver", "flags", "layers", "built_in_s", "warnings"), "TEST DATA")
CONFIG = """
instance_group { kind: KIND_GPU profile: "0" profile: "1" profile: "2" }
optimization { cuda { graph_spec { batch_size: 1 input { key: "input_ids" value { dim: 32 } } } } }
"""


class Doubles:
    """A builder that takes its time on the test's clock, and what was asked of it, of workers and of servers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 0.0
        self.built: list[tuple[str, list[int], float]] = []
        self.build_takes_s: Callable[[str], float] = lambda _: 60.0
        self.loads: list[tuple[str, str, int]] = []
        self.refused_loads: set[int] = set()
        self.script = folder / "worker.py"
        self.script.write_text(WORKER)

    def run_builder(self, settings: Path, *, within_s: float) -> str:
        described = json.loads(settings.read_text())
        lengths = [profile["length"][2] for profile in described["profiles"]]
        name = f"{settings.parent.name} {settings.stem}"
        self.built.append((name, lengths, within_s))
        takes_s = self.build_takes_s(name)
        self.now += min(takes_s, within_s)
        if takes_s > within_s:
            raise plans.BuildError(f"{settings.name}: must be built within {within_s:.0f} s")
        for rung in described["rungs"]:
            plan = settings.with_name(f"model.{rung['name']}.plan")
            plan.write_bytes(b"a plan")
            plan.with_name(f"{plan.name}.json").write_text(json.dumps(STAMP | {"profiles": described["profiles"]}))
        settings.with_name("rungs.json").write_text("{}")
        settings.with_name("rungs.txt").write_text("int8\n")
        return ""

    def server(self, folder: Path, **_: Any) -> Any:
        self.loads.append(("server", folder.name, 0))
        return nullcontext(self)

    grpc_url = "TEST DATA"

    def load(self, url: str, model: str, requests: Path, *, in_flight: int, seconds: float) -> dict[str, Any]:
        self.loads.append((model, requests.name, in_flight))
        if in_flight in self.refused_loads:
            raise OSError("TEST DATA: refused")
        return {"in_flight": in_flight, "requests_per_s": 90.0, "p50_ms": 1.0, "p99_ms": 2.0}

    def started(self) -> list[str]:
        log = Path(f"{self.script}.started")
        return log.read_text().splitlines() if log.exists() else []

    def call(self, budget_s: float, *, out: str = "out", only: tuple[str, ...] = (), build_s: float = 150.0) -> Path:
        records = Records(self.folder / "work", self.folder / out, budget_s, clock=lambda: self.now)
        visit = steps.Visit(self.folder / "visit", records, sys.executable, ("large",), build_s)
        steps.run(visit, only)
        return self.folder / out


@pytest.fixture
def doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doubles:
    doubles = Doubles(tmp_path)
    source = tmp_path / "visit" / "workloads" / "qa"
    version = source / "repository" / "qa_engine" / "1"
    version.mkdir(parents=True)
    settings = {"inputs": plans.INPUTS, "of_tokens": ["start", "end"], "profiles": plans.profiles(), "rungs": []}
    (version / "plan.json").write_text(json.dumps(settings))
    (version.parent / "config.pbtxt").write_text(CONFIG)
    (source / "requests.json").write_text("[]")
    monkeypatch.setattr(steps, "module", lambda name: [str(doubles.script), name])
    monkeypatch.setattr(steps, "_filling", lambda _: nullcontext())
    monkeypatch.setattr(plans, "run_builder", doubles.run_builder)
    monkeypatch.setattr(plans, "tactic_sources", lambda: None)
    monkeypatch.setattr(plans, "filled", filled)
    monkeypatch.setattr(serving, "TritonServer", doubles.server)
    monkeypatch.setattr(serving.closed_loop, "load", doubles.load)
    return doubles


def filled(visit: Path, work: Path, name: str, rung: str) -> Path:
    path = plans.graph(work, name, rung)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a graph")
    return path


def written(folder: Path) -> list[dict[str, Any]]:
    """Returns every line, in its order."""
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def statuses(folder: Path) -> dict[str, str]:
    return {entry["item"]: entry["status"] for entry in read(folder)}


def test_what_the_visit_is_for_comes_first(doubles: Doubles) -> None:
    entries = written(doubles.call(1e6))
    items = [entry["item"] for entry in entries]
    expected = [f"tiny: {what} {rung}" for rung in ("fp32", "fp16", "int8") for what in ("plan", "parity")]
    for rung in ("fp16", "int8"):
        expected += [f"large: {what} {rung}.384" for what in ("plan", "parity")]
        expected += [f"large: {rung} {batch}x384" for batch in (128, 32, 8, 1)]
    expected += ["large int8.384: server"]
    expected += [f"large int8.384: engine, {in_flight} in flight" for in_flight in (64, 256)]
    assert items[: len(expected)] == expected
    assert {entry["status"] for entry in entries} == {"done"}
    assert len(items) == len(set(items))
    # What torch does is measured against plans whose figures are written.
    first_of_torch = next(number for number, line in enumerate(doubles.started()) if line.startswith("torch_worker"))
    ours = [line.split()[0] for line in doubles.started()[:first_of_torch]]
    # Three parities of the tiny plans; one and two workers of FP16's; one, two and two of INT8's.
    assert ours.count("answers_worker") == 5
    assert ours.count("tensorrt_worker") == 2 + 4
    assert {"large: peers 1x32", "large: int8 1x32", "large int8: texts, 256 in flight"} <= {*items}


def test_builds_are_limited_and_the_first_has_one_profile(doubles: Doubles) -> None:
    doubles.call(1e6, only=("parity", "fp16", "shapes"))
    found = {name: (lengths, within_s) for name, lengths, within_s in doubles.built}
    assert found["tiny fp16"] == ([*LENGTHS], 60.0)
    assert found["large fp16.384"] == ([384], 150.0)
    assert found["large int8"] == ([*LENGTHS], 150.0)


def test_no_build_outlasts_the_call(doubles: Doubles) -> None:
    doubles.call(100.0, only=("fp16",))
    assert doubles.built == [("large fp16.384", [384], 100.0)]
    doubles.call(1e6, out="another", only=("int8",), build_s=400.0)
    assert doubles.built[-1] == ("large int8.384", [384], 400.0)


def test_another_call_goes_on_where_the_first_ended(doubles: Doubles) -> None:
    first = statuses(doubles.call(3 * 60 + 60 + 29))
    assert first["large: fp16 1x384"] == "done"
    assert first["large: plan int8.384"] == "not run"
    assert doubles.now == 4 * 60
    entries = written(doubles.call(1e6, out="another"))
    done = [entry["item"] for entry in entries if entry["status"] == "done"]
    assert len(done) == len(set(done))
    # INT8's plan is there now, and served in the place of FP16's.
    not_done = {*statuses(doubles.folder / "another")} - {*done}
    assert not_done == {f"large fp16.384: engine, {in_flight} in flight" for in_flight in (64, 256)}
    assert [name for name, _, _ in doubles.built].count("large fp16.384") == 1


def test_build_that_hangs_costs_its_limit_and_what_needs_it(doubles: Doubles) -> None:
    doubles.build_takes_s = lambda name: 1e9 if name == "large int8.384" else 60.0
    found = {entry["item"]: entry for entry in read(doubles.call(1e6, only=("fp16", "int8", "serving")))}
    assert found["large: plan int8.384"]["why"] == "BuildError: int8.384.json: must be built within 150 s"
    assert not [item for item in found if item.startswith("large: int8")]
    assert found["large fp16.384: engine, 64 in flight"]["status"] == "done"
    doubles.build_takes_s = lambda _: 60.0
    assert statuses(doubles.call(1e6, out="another", only=("int8",)))["large: int8 128x384"] == "done"


def test_without_a_plan_no_worker_is_started(doubles: Doubles) -> None:
    doubles.build_takes_s = lambda _: 1e9
    found = statuses(doubles.call(1e6, only=("fp16", "int8", "serving", "peers", "all-peers", "loads")))
    assert {*found.values()} == {"failed", "not run"}
    assert doubles.started() == []


def test_without_the_time_for_a_figure_no_worker_is_started(doubles: Doubles) -> None:
    found = {entry["item"]: entry for entry in read(doubles.call(75.0, only=("fp16", "peers")))}
    assert [line.split()[0] for line in doubles.started()] == ["answers_worker"]
    assert found["large: fp16 128x384"]["why"] == "needs 20 s, the call has 15 s left"


def test_part_that_fails_is_not_the_end(doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(visit: steps.Visit) -> None:
        raise OSError("no\nspace left")

    monkeypatch.setitem(steps.PARTS, "parity", failing)
    found = {entry["item"]: entry for entry in read(doubles.call(1e6, only=("parity", "rates")))}
    assert found["part parity"]["why"] == "OSError: no space left"
    assert found["matrix rate int8"]["status"] == "done"


def test_loads_that_failed_are_asked_again_of_another_server(doubles: Doubles) -> None:
    doubles.refused_loads = {256}
    doubles.call(1e6, only=("fp16", "serving"))
    asked = [("qa_engine", "tokens.json", in_flight) for in_flight in (64, 256)]
    assert doubles.loads == [("server", "served", 0), *asked]
    doubles.refused_loads.clear()
    doubles.loads.clear()
    found = statuses(doubles.call(1e6, out="another", only=("serving",)))
    assert doubles.loads == [("server", "served", 0), asked[1]]
    assert found["large fp16.384: engine, 256 in flight"] == "done"
    doubles.call(1e6, out="third", only=("serving",))
    assert len(doubles.loads) == 2


def test_answers_to_the_gates_data_come_back(doubles: Doubles) -> None:
    plan = doubles.folder / "work" / "workloads" / "qa" / "repository" / "qa_engine" / "1" / "model.int8.plan"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b"a plan")
    (plan.parent / "rungs.txt").write_text("int8\n")
    (plan.parent / "rungs.json").write_text("{}")
    for out in ("out", "another"):
        assert (doubles.call(1e6, out=out, only=("workloads",)) / "qa.int8.npz").read_bytes() == b"answers"


def test_parts_that_there_are_not_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--python", sys.executable]
    assert main(["run", str(tmp_path), *options, "--only", "int8", "int4"]) == 2
    assert "--only must name parts of parity, fp16, int8, serving" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
