"""docs/faults.py: its promises are kept on a tiny repository, and it sees one that is broken."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[1] / "docs"
NAME = "recommendation"


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        "stub-killed",
        "server-killed",
        pytest.param("disk-full", marks=pytest.mark.skipif(os.geteuid() != 0, reason="a disk is mounted, as root")),
        "build-killed",
        "descriptors",
        "soak",
    ],
)
def test_every_promise_is_kept(fault: str, tiny_repository: Path) -> None:
    command = [sys.executable, str(DOCS / "faults.py"), str(tiny_repository), NAME, fault]
    command += ["--seconds", "3", "--minutes", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BROKEN" not in done.stdout
    assert done.stdout.rstrip().endswith("every promise kept")


def test_a_wrong_answer_is_seen(
    tiny_repository: Path, tiny_server: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clients' golden requests are those of another order of answers."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(DOCS)])
    from fault_lab import Lab, Load, judge

    lab = Lab(tiny_repository, NAME, tmp_path, seconds=1, minutes=1)
    load = Load(tiny_server.grpc_url, tiny_repository, NAME)  # type: ignore[attr-defined]
    with load.by(2):
        assert load.wait_for_answers(10, 60) is not None
    judge(lab, load)
    assert lab.broken == []
    for request in load._requests:
        request["outputs"]["ITEM_ID"].reverse()
    load.reset()
    end = time.monotonic() + 60
    with load.by(1):
        # Each request once, at least.
        while len(load.wrong) < len(load._requests) and time.monotonic() < end:
            time.sleep(0.02)
    assert load.wrong
    assert load.right == 0
    judge(lab, load)
    assert len(lab.broken) == 1
    assert lab.broken[0].startswith("no answer is wrong, got ITEM_ID of ")


def test_the_trend_of_memory_has_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(DOCS)])
    from fault_of_soaking import trend

    chance = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        values = 100 + 0.01 * np.arange(600) + chance.normal(0, 3, 600)
        slope, low, high = trend(values)
        assert low <= slope <= high
        inside += low <= 0.01 <= high
    assert 180 <= inside <= 198
