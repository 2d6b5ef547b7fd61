"""Plans on a GPU: they answer as the graphs do, say what they are, and are refused where they cannot be right.

    make test-gpu

Where the generator's packages are not installed, `TRITONPRESS_VISIT` names a folder of `python -m visit prepare`, and
`TRITONPRESS_WORK` one in which a visit's steps have built plans already.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonpress_generator.plans.runner import Cuda, PlanError, Runner, fitting, load, tensorrt
from visit import parity, plans
from visit.shapes import BATCHES, LENGTHS

pytestmark = pytest.mark.gpu
NAMES = ("tiny", "minilm")
WITHIN_S = 400.0


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """Skips where there is no TensorRT or no GPU, and says which."""
    try:
        tensorrt()
        count = Cuda()("cudaGetDeviceCount")
    except PlanError as exc:
        pytest.skip(str(exc))
    if not count:
        pytest.skip("no GPU is here")


@pytest.fixture(scope="module")
def visit(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs and their answers."""
    if folder := os.environ.get("TRITONPRESS_VISIT"):
        return Path(folder)
    from visit import prepare

    folder = tmp_path_factory.mktemp("visit")
    for name in NAMES:
        prepare.shape(name, folder)
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = os.environ.get("TRITONPRESS_WORK")
    return Path(folder) if folder else tmp_path_factory.mktemp("work")


@pytest.fixture
def tiny(visit: Path, work: Path) -> Path:
    return plans.build(visit, work, "tiny", "fp16", within_s=WITHIN_S)


def stamp_of(plan: Path) -> dict[str, Any]:
    stamp: dict[str, Any] = json.loads(plan.with_name(f"{plan.name}.json").read_text())
    return stamp


def feed(batch: int, length: int) -> dict[str, np.ndarray]:
    return {name: np.ones((batch, length), np.int32) for name in plans.INPUTS}


@pytest.mark.parametrize("rung", plans.TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_plans_answer_as_onnx_runtime(visit: Path, work: Path, name: str, rung: str) -> None:
    plan = plans.build(visit, work, name, rung, within_s=WITHIN_S)
    parity.check(rung, plans.compare(visit, plan, name, rung))


def test_another_graphs_answers_are_refused(visit: Path, tiny: Path) -> None:
    run = plans.loaded(tiny)
    asked = parity.answers(visit / "shapes" / "tiny" / "answers.npz", "fp16")
    changed = [(given | {"input_ids": (given["input_ids"] + 1) % 100}, expected) for given, expected in asked]
    with pytest.raises(parity.ParityError, match="fp16: cosine must be at least"):
        parity.check("fp16", parity.differences(run, changed))


def test_precision_is_what_was_asked_for(visit: Path, work: Path) -> None:
    int8 = plans.build(visit, work, "minilm", "int8", within_s=WITHIN_S)
    fp16 = plans.build(visit, work, "minilm", "fp16", within_s=WITHIN_S)
    if not stamp_of(int8)["strongly_typed"]:
        assert {"FP16", "INT8"} <= set(stamp_of(int8)["flags"])
        assert "INT8" not in stamp_of(fp16)["flags"]
    assert int8.stat().st_size < fp16.stat().st_size


def test_stamp_says_what_the_plan_is(tiny: Path) -> None:
    stamp = stamp_of(tiny)
    assert stamp["plan"] == hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert stamp["graph"] == hashlib.sha256(tiny.with_name("model.fp32.onnx").read_bytes()).hexdigest()
    assert stamp["tensorrt"] == tensorrt().__version__
    assert stamp["profiles"] == plans.profiles()
    major, _, minor = stamp["compute_capability"].partition(".")
    assert int(major) >= 7
    assert minor.isdigit()
    assert stamp["gpu"]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("batch", [1, max(BATCHES)])
def test_every_profile_is_run(tiny: Path, batch: int, length: int) -> None:
    answers = Runner(tensorrt(), tiny.read_bytes())(feed(batch, length))
    assert {name: answer.shape for name, answer in answers.items()} == dict.fromkeys(parity.OF_TOKENS, (batch, length))
    assert all(np.isfinite(answer).all() for answer in answers.values())


@pytest.mark.parametrize("shape", [(max(BATCHES) + 1, LENGTHS[0]), (1, LENGTHS[-1] + 1), (1, LENGTHS[0] - 1)])
def test_what_no_profile_holds_is_refused(tiny: Path, shape: tuple[int, int]) -> None:
    with pytest.raises(PlanError, match="no profile of the plan holds it; widen optimization_profiles"):
        Runner(tensorrt(), tiny.read_bytes())(feed(*shape))


def test_lengths_between_are_filled_up(tiny: Path) -> None:
    run = Runner(tensorrt(), tiny.read_bytes())
    given = feed(2, LENGTHS[0])
    given["attention_mask"][:, 20:] = 0
    short = {name: tensor[:, :20] for name, tensor in given.items()}
    expected, got = run(given), fitting(run, plans.profiles(), parity.OF_TOKENS)(short)
    assert all(np.array_equal(got[name], expected[name][:, :20]) for name in parity.OF_TOKENS)


@pytest.mark.parametrize("graph", [False, True])
def test_executions_are_repeated_without_copies(tiny: Path, graph: bool) -> None:
    run = Runner(tensorrt(), tiny.read_bytes())
    before = run(feed(8, LENGTHS[0]))
    if graph:
        run.capture()
    assert 0 < run.again(10) < 10
    after = run(feed(8, LENGTHS[0]))
    assert all(np.array_equal(after[name], before[name]) for name in parity.OF_TOKENS)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"\0" * 64 + data[64:]])
def test_corrupt_plan_is_refused(tiny: Path, damage: Any) -> None:
    with pytest.raises(PlanError, match=r"cannot be loaded by TensorRT .* here"):
        load(tensorrt(), damage(tiny.read_bytes()), stamp_of(tiny))


def test_graph_that_is_none_is_refused(tiny: Path, tmp_path: Path) -> None:
    settings = json.loads(tiny.with_name("fp16.json").read_text())
    (tmp_path / "model.fp32.onnx").write_bytes(b"no graph")
    (tmp_path / "plan.json").write_text(json.dumps(settings))
    with pytest.raises(plans.BuildError, match=r"status 2 .*model.fp32.onnx: TensorRT .* cannot take"):
        plans.run_builder(tmp_path / "plan.json", within_s=WITHIN_S)


def test_rung_that_is_not_faster_is_refused(visit: Path, work: Path) -> None:
    """FP32 in the place of the lower rung: at 32 × 384 it is slower than FP16 on every GPU with tensor cores."""
    graph = plans.filled(visit, work, "minilm", "fp32")
    settings = {
        "rungs": [
            {"name": name, "model": graph.name, "types": plans.TYPES[types]}
            for name, types in (("first", "fp16"), ("second", "fp32"))
        ],
        "inputs": plans.INPUTS,
        "profiles": plans.profiles(),
        "shapes": [[32, LENGTHS[-1]]],
        "tactic_sources": plans.tactic_sources(),
    }
    path = graph.with_name("ladder.json")
    path.write_text(json.dumps(settings))
    said = plans.run_builder(path, within_s=WITHIN_S)
    assert "refused: must be faster than first" in said
    assert graph.with_name("rungs.txt").read_text() == "first\n"
    assert graph.with_name("model.first.plan").exists()
    assert not graph.with_name("model.second.plan").exists()
