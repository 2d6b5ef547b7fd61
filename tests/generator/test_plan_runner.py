"""A plan of a few lengths answers batches of every length up to the longest; a machine without a driver is said."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import make, pairs, signature
from tritonpress_generator import export
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.plans.runner import Cuda, PlanError, fitting

MODEL = make("bert", export.ATTENTION, "all")
GIVES = signature(MODEL)
GRAPH = session_infer(export.export(MODEL, GIVES).SerializeToString())
PROFILES: list[dict[str, Any]] = [
    {"batch": [1, 4, 4], "length": [8, 8, 8]},
    {"batch": [1, 4, 4], "length": [24, 24, 24]},
    {"batch": [1, 1, 1], "length": [10, 48, 48]},
]


def plan(feed: dict[str, Any]) -> dict[str, Any]:
    """Answers as the graph, and nothing that is outside of the profiles."""
    shapes = {tensor.shape for tensor in feed.values()}
    ((batch, length),) = shapes
    held = (p["batch"][0] <= batch <= p["batch"][2] and p["length"][0] <= length <= p["length"][2] for p in PROFILES)
    if not any(held):
        raise PlanError(f"shape {[batch, length]}: no profile")
    return GRAPH(feed)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 48), min_size=1, max_size=4), st.integers(0, 9))
def test_every_length_is_answered(lengths: list[int], seed: int) -> None:
    feed = pairs(lengths, seed)
    run = fitting(plan, PROFILES, GIVES.of_tokens)
    if max(lengths) > (48 if len(lengths) == 1 else 24):
        with pytest.raises(PlanError, match=r"no profile of the plan holds it; widen optimization_profiles"):
            run(feed)
        return
    expected, got = GRAPH(feed), run(feed)
    present = feed["attention_mask"].astype(bool)
    for name, answer in expected.items():
        assert got[name].shape == answer.shape
        rows = present if name in GIVES.of_tokens else ...
        assert np.abs(got[name][rows] - answer[rows]).max() < 1e-5


def test_what_fits_is_not_filled_up() -> None:
    seen = []
    run = fitting(lambda feed: seen.append(feed["input_ids"].shape) or GRAPH(feed), PROFILES, GIVES.of_tokens)
    for lengths in ([8], [24, 3], [30], [9]):
        run(pairs(lengths))
    # Of one sequence the third profile takes every length from 10 on.
    assert seen == [(1, 8), (2, 24), (1, 30), (1, 10)]


@pytest.mark.parametrize("answer", [RuntimeError("Failed to dlopen\nlibcuda.so.1"), (35,)])
def test_machine_without_a_driver_is_said(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """cuda-python 12.6 raises where there is no libcuda, and returns an error where there is one and no GPU."""

    def count() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    package, cudart = ModuleType("cuda"), ModuleType("cuda.cudart")
    cudart.cudaGetDeviceCount = count  # type: ignore[attr-defined]
    package.cudart = cudart  # type: ignore[attr-defined]
    for name, module in (("cuda", package), ("cuda.cudart", cudart)):
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(PlanError, match=r"cudaGetDeviceCount: .*a GPU and its driver are needed") as raised:
        Cuda()("cudaGetDeviceCount")
    assert "\n" not in str(raised.value)
