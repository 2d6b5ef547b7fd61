"""The demonstration, as `make demo` runs it, with a short load."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METRICS = {"question_answering": "f1", "classification": "accuracy", "recommendation": "ndcg@10"}


@pytest.mark.slow
def test_demo_builds_serves_loads_and_reports(tmp_path: Path) -> None:
    command = [sys.executable, "loadtests/demo.py", "--repository", str(tmp_path / "repository")]
    command += ["--reports", str(tmp_path / "reports"), "--duration-scale", "0.15"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    rows = [re.split(r" {2,}", line.strip()) for line in done.stdout.split("\n\n")[-2].splitlines()[2:]]
    figures = [
        "torch FP32, in process, 32 tokens",
        "fuse + quantize, in process, 32 tokens",
        "served by Triton, 1 user in all",
        "served by Triton, 4 users in all",
        "served by Triton, 16 users in all",
    ]
    assert [row[0] for row in rows] == [label for name in METRICS for label in (name, *figures)]
    for start, (name, metric) in zip(range(0, len(rows), 6), METRICS.items(), strict=True):
        assert rows[start] == [name, metric]
        in_process, *served = (float(row[-1]) for row in rows[start + 2 : start + 6])
        assert served == pytest.approx([in_process] * 3, rel=0.01)
    report = tmp_path / "reports" / "mixed"
    assert {path.name for path in report.iterdir()} >= {"results.json", "report.html", "throughput_latency.png"}
    results = json.loads((report / "results.json").read_text())
    assert sum(stage["failed"] for stage in results["stages"]) == 0
    assert "\u00ab" in done.stdout
