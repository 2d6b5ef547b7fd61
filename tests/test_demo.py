"""The demonstration, as `make demo` runs it, with a short load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_demo_builds_serves_loads_and_reports(tmp_path: Path) -> None:
    command = [sys.executable, "loadtests/demo.py", "--repository", str(tmp_path / "repository")]
    command += ["--reports", str(tmp_path / "reports"), "--duration-scale", "0.15"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    table = done.stdout.split("\n\n")[-2]
    assert [line.split("  ")[0] for line in table.splitlines()[2:]] == [
        "torch FP32, in process, 32 tokens",
        "fuse + quantize, in process, 32 tokens",
        "served by Triton, 1 user",
        "served by Triton, 4 users",
        "served by Triton, 16 users",
    ]
    report = tmp_path / "reports" / "recommendation"
    assert {path.name for path in report.iterdir()} >= {"results.json", "report.html", "throughput_latency.png"}
    results = json.loads((report / "results.json").read_text())
    assert sum(stage["failed"] for stage in results["stages"]) == 0
