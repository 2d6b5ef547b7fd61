"""A range that is chosen by a share of the values holds that share, whichever side of 0 they are on."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonpress_generator import calibration
from tritonpress_generator.infer import Array

BINS = 512
"""Of magnitudes."""
NORMAL = np.random.default_rng(0).normal(size=(200, 100)).astype(np.float32)


def handed_on() -> onnx.ModelProto:
    """Returns y = x."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize(
    "values",
    [NORMAL, np.maximum(NORMAL, 0), -np.abs(NORMAL), NORMAL - 3, np.zeros_like(NORMAL)],
    ids=["both sides", "positive", "negative", "shifted", "zeros"],
)
def test_the_share_is_held_and_little_more(values: Array, percentile: float) -> None:
    magnitudes = np.abs(values)
    largest = float(magnitudes.max())
    samples = [{"x": part} for part in np.split(values, 4)]
    found = calibration.clipped(
        handed_on(), {"y": largest}, samples, method="percentile", percentile=percentile, divided=lambda _, x: x
    )["y"]
    assert found <= largest
    wanted = percentile / 100
    assert np.mean(magnitudes <= found * (1 + 1e-6)) >= wanted
    if largest:
        assert np.mean(magnitudes < found - 1.001 * largest / BINS) < wanted
