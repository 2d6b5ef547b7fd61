"""The load generator beside NVIDIA's perf_analyzer: the same server, texts and fixed rate, in turn.

    python docs/perf_analyzer.py model_repo --perf-analyzer PATH [--rate 100 --repeats 5 --seconds 20]

perf_analyzer is no package of its own: the wheels of tritonclient 2.40 to 2.51 carry it (`*/bin/perf_analyzer`), and it
needs libb64.so.0d (Debian's libb64-0d) and libcudart.so.12 (nvidia-cuda-runtime-cu12) on LD_LIBRARY_PATH. Requests are
sent at equal distances, so that both send at the same moments. Choose a rate of at most half of what the server can do:
beyond it the two differ as they must, as perf_analyzer measures from the moment of sending, not from the planned one.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tritonpress_loadtests.run import run
from tritonpress_server import TritonServer

TEXTS = Path(__file__).parents[1] / "generator" / "recipes" / "classification" / "financial_news.tsv"
MODEL = "classification"
FIGURES = ("throughput_per_s", "p50_ms", "p99_ms")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, help="with `classification`")
    parser.add_argument("--perf-analyzer", type=Path, required=True, help="the binary")
    parser.add_argument("--rate", type=float, default=100, help="requests/s (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of each, in turn (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="of each (%(default)s)")
    arguments = parser.parse_args()
    rows: dict[str, list[list[float]]] = {"tritonpress-load": [], "perf_analyzer": []}
    with tempfile.TemporaryDirectory() as name, TritonServer(arguments.repository, models=[MODEL]) as server:
        folder = Path(name)
        for repeat in range(arguments.repeats):
            for tool in sorted(rows, reverse=repeat % 2 == 0):
                if tool == "perf_analyzer":
                    figures = _theirs(arguments, server.grpc_url, folder)
                else:
                    figures = _ours(arguments, server.grpc_url, folder)
                rows[tool].append([figures[key] for key in FIGURES])
                print(repeat + 1, tool, {key: round(figures[key], 3) for key in FIGURES}, file=sys.stderr, flush=True)
    ours, theirs = (np.array(rows[tool]) for tool in rows)
    print(
        "| figure | tritonpress-load | perf_analyzer | ours over theirs, repeat by repeat |\n| --- | --- | --- | --- |"
    )
    for place, key in enumerate(FIGURES):
        ratios = ours[:, place] / theirs[:, place]
        print(
            f"| {key} | {np.median(ours[:, place]):.3f} | {np.median(theirs[:, place]):.3f} "
            f"| {np.median(ratios):.3f} [{ratios.min():.3f}–{ratios.max():.3f}] |"
        )


def _ours(arguments: argparse.Namespace, url: str, folder: Path) -> dict[str, float]:
    scenario = folder / "scenario.yaml"
    stage = {"rate_per_s": arguments.rate, "arrivals": "constant", "duration_s": arguments.seconds}
    request = {"workload": MODEL, "model": MODEL, "queries": str(TEXTS)}
    scenario.write_text(
        yaml.safe_dump({"name": "fixed", "requests": [request], "warm_up_s": 2, "stages": [stage]}), encoding="utf-8"
    )
    (found,) = run(scenario, url, folder / "ours")["stages"]
    latency = found["latency_ms"]
    return {"throughput_per_s": found["throughput_per_s"], "p50_ms": latency["p50"], "p99_ms": latency["p99"]}


def _theirs(arguments: argparse.Namespace, url: str, folder: Path) -> dict[str, float]:
    data, table = folder / "texts.json", folder / "theirs.csv"
    if not data.exists():
        with TEXTS.open(encoding="utf-8", newline="") as file:
            texts = [row["text"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
        entries: list[dict[str, Any]] = [{"TEXT": {"content": [text], "shape": [1]}} for text in texts]
        data.write_text(json.dumps({"data": entries}), encoding="utf-8")
    # Three windows make a measurement of theirs; each has a third of the time.
    words = [
        str(arguments.perf_analyzer), "-m", MODEL, "-u", url, "-i", "grpc", "--async", "-b", "1",
        "--request-rate-range", f"{arguments.rate:g}", "--request-distribution", "constant",
        "--input-data", str(data), "-p", str(round(1000 * arguments.seconds / 3)), "-s", "15", "-r", "6",
        "-f", str(table),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode or not table.exists():
        sys.exit(f"perf_analyzer ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-400:]}")
    with table.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    table.unlink()
    return {
        "throughput_per_s": float(row["Inferences/Second"]),
        "p50_ms": float(row["p50 latency"]) / 1e3,
        "p99_ms": float(row["p99 latency"]) / 1e3,
    }


if __name__ == "__main__":
    main()
