"""A plan goes to the server whose TensorRT built it, and to no other."""

from __future__ import annotations

import re

import pytest
from tritonpress_generator.errors import InputError
from tritonpress_generator.plans.releases import MATRIX, RELEASES, check_release, mismatch


@pytest.mark.parametrize(
    ("stamp", "release"),
    [
        ({"tensorrt": "8.6.1.2", "release": None}, "23.05"),
        ({"tensorrt": "8.6.3.1", "release": None}, "24.02"),
        ({"tensorrt": "10.5.0.18", "release": "24.10"}, "24.10"),
        ({"tensorrt": "8.6.1.2", "release": "23.04", "version_compatible": True}, "24.02"),
    ],
)
def test_plan_that_runs_there(stamp: dict[str, object], release: str) -> None:
    assert mismatch(stamp, release) is None


@pytest.mark.parametrize(
    ("stamp", "release", "message"),
    [
        ({"tensorrt": "8.6.1.6", "release": None}, "23.05", "TensorRT 8.6.1.6; Triton 23.05 has 8.6.1.2 .*issues/5975"),
        ({"tensorrt": "8.6.1.2", "release": "23.05"}, "24.02", "or with engine.tensorrt.version_compatible"),
        ({"tensorrt": "8.6.3", "release": None, "version_compatible": True}, "23.05", "build it in .*tensorrt:23.05"),
        ({"tensorrt": "10.5.0.18", "release": "24.10"}, "25.01", "which one Triton 25.01 has is not known here"),
    ],
)  # fmt: skip
def test_plan_that_does_not_run_there(stamp: dict[str, object], release: str, message: str) -> None:
    found = mismatch(stamp, release)
    assert found is not None
    assert re.search(message, found)
    assert "\n" not in found


def test_every_release_has_a_source_and_a_version() -> None:
    assert MATRIX.startswith("https://")
    for release, known in RELEASES.items():
        check_release(release, where="table")
        assert known.tensorrt or known.python
        assert (known.python is None) == (known.onnxruntime is None)
        if known.tensorrt:
            assert known.tensorrt.source.startswith("https://")
            assert int(known.tensorrt.version.partition(".")[0]) >= 8


@pytest.mark.parametrize("release", ["", "24.13", "2410", "24.10-py3"])
def test_what_is_no_release_is_refused(release: str) -> None:
    with pytest.raises(InputError, match="must be a release of NVIDIA's containers"):
        check_release(release, where="--server")
