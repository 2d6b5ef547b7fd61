"""The demonstration (`make demo`): build, verify, serve, ask, load and report, by the commands that a user has."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tritonpress_client import Recommender
from tritonpress_generator import recipe as recipes
from tritonpress_generator import repository
from tritonpress_generator.build import LATENCY_TOKENS
from tritonpress_generator.metrics import ndcg_at_k
from tritonpress_generator.table import render
from tritonpress_server.ports import choose_ports

ROOT = Path(__file__).resolve().parents[1]
RECIPE = Path("generator/recipes/recommendation.yaml")
SCENARIO = Path("loadtests/scenarios/recommendation.yaml")
CATALOGUE = Path("generator/recipes/recommendation/catalogue.jsonl")
WORKLOAD = "recommendation"
QUERIES = [
    "something to stop the dog pulling on walks",
    "keep my phone alive on a long hike",
    "Bread Knife\nSourdough starter kit",
]
_START_S = 60.0


def main() -> int:
    """Returns the exit status: that of the first command that fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repo"))
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.add_argument("--duration-scale", default="1", help="shortens or lengthens the load (default: 1)")
    options = parser.parse_args()
    os.chdir(ROOT)
    start = time.monotonic()
    try:
        _run("tritonpress", "build", RECIPE, "--out", options.repository)
        _run("tritonpress", "verify", options.repository)
        ports = choose_ports("127.0.0.1", dict.fromkeys(("grpc", "http", "metrics")))
        url = f"127.0.0.1:{ports['grpc']}"
        flags = [f"--{name}-port={port}" for name, port in ports.items()]
        server = _start("tritonpress-serve", options.repository, *flags)
        try:
            _wait_for_ready(server)
            _run("tritonpress-query", "recommend", *QUERIES, "-k", "3", "--url", url, "--catalogue", CATALOGUE)
            report = options.reports / WORKLOAD
            load = ["tritonpress-load", "run", SCENARIO, "--out", report, "--url", url]
            _run(*load, "--duration-scale", options.duration_scale)
            served = _served_metric(url)
        finally:
            _stop(server)
    except subprocess.CalledProcessError as exc:
        print(f"demo: {shlex.join(map(str, exc.cmd))} ended with status {exc.returncode}", file=sys.stderr)
        return int(exc.returncode)
    except KeyboardInterrupt:
        print("demo: interrupted; everything that was started has been stopped", file=sys.stderr)
        return 130
    manifest = repository.read_manifest(options.repository, WORKLOAD)
    results = json.loads((report / "results.json").read_text(encoding="utf-8"))
    print(f"\n{_closing_table(manifest, results, served)}\n")
    print(f"report: {report}/report.html   repository: {options.repository}/   {time.monotonic() - start:.0f} s in all")
    return 0


def _closing_table(manifest: dict[str, Any], results: dict[str, Any], served_metric: float) -> str:
    """Returns the FP32 baseline, what is served, and how it is served, side by side."""
    metric = manifest["gate"]["metric"]
    header = ["", "size MB", "p50 ms", "p99 ms", "requests/s", metric]
    stages = manifest["stages"]
    rows = []
    for stage in (stages[0], stages[-1]):
        name = f"{stage['stage']}, in process, {LATENCY_TOKENS} tokens"
        rate = f"{1000 / stage['latency_ms']:.0f}"
        size = f"{stage['size_bytes'] / 1e6:.1f}"
        rows.append([name, size, f"{stage['latency_ms']:.2f}", "", rate, f"{stage['metrics'][metric]:.4f}"])
    size = f"{repository.size_bytes(manifest) / 1e6:.1f}"
    for stage in results["stages"]:
        users = stage["users"]
        latency = stage["latency_ms"]
        name = f"served by Triton, {users} user{'s' if users > 1 else ''}"
        figures = [f"{latency['p50']:.2f}", f"{latency['p99']:.2f}", f"{stage['throughput_per_s']:.0f}"]
        rows.append([name, size, *figures, f"{served_metric:.4f}"])
    return render(header, rows)


def _served_metric(url: str) -> float:
    """Returns the metric of the answers that the server gives to the labelled queries."""
    recipe = recipes.load(RECIPE)
    queries = recipe.task.module.load_data(recipe).queries
    with Recommender(url, timeout_s=30) as recommender:
        answers = [recommender.recommend(query.query) for query in queries]
    ranked = [[item.item_id for item in answer] for answer in answers]
    return float(np.round(ndcg_at_k(ranked, [query.relevant for query in queries], 10), 10))


def _run(*command: object) -> None:
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    subprocess.run(words, check=True)


def _start(*command: object) -> subprocess.Popen[str]:
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)} &", flush=True)
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def _wait_for_ready(server: subprocess.Popen[str]) -> None:
    """Prints what the server says until it is ready."""
    end = time.monotonic() + _START_S
    if server.stdout is None:
        raise RuntimeError("the server's output must be a pipe")
    for line in server.stdout:
        print(line, end="", flush=True)
        if line.startswith("ready") or time.monotonic() > end:
            return
    raise subprocess.CalledProcessError(server.wait(), server.args)


def _stop(server: subprocess.Popen[str]) -> None:
    server.send_signal(signal.SIGINT)
    try:
        server.wait(timeout=40)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
