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

from tritonpress_generator import repository
from tritonpress_generator.build import LATENCY_TOKENS
from tritonpress_generator.table import render
from tritonpress_server.ports import choose_ports

ROOT = Path(__file__).resolve().parents[1]
RECIPES = Path("generator/recipes")
CATALOGUE = "generator/recipes/recommendation/catalogue.jsonl"
SCENARIO = Path("loadtests/scenarios/mixed.yaml")
WORKLOADS = ("question_answering", "classification", "recommendation")
PASSAGE = (
    "You can send back most items within 30 days of delivery. Returns handed in at a store counter are always free. "
    "Once the parcel reaches our warehouse, the money goes back to the card you paid with 5 working days later."
)
REQUESTS = [
    ["ask", "How long do I have to return something?", "Can I return a gift card?", "--context", PASSAGE],
    ["classify", "Profit doubled on strong demand for its pumps", "Shares of the lender fall 12% after profit warning"],
    ["recommend", "something to stop the dog pulling on walks", "-k", "3", "--catalogue", CATALOGUE],
    ["recommend", "Bread Knife\nSourdough starter kit", "-k", "3", "--catalogue", CATALOGUE],
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
    recipes = {name: RECIPES / f"{name}.yaml" for name in WORKLOADS}
    report = options.reports / SCENARIO.stem
    try:
        for recipe in recipes.values():
            _run("tritonpress", "build", recipe, "--out", options.repository)
        _run("tritonpress", "verify", options.repository)
        ports = choose_ports("127.0.0.1", dict.fromkeys(("grpc", "http", "metrics")))
        url = f"127.0.0.1:{ports['grpc']}"
        flags = [f"--{name}-port={port}" for name, port in ports.items()]
        server = _start("tritonpress-serve", options.repository, *flags)
        try:
            _wait_for_ready(server)
            for request in REQUESTS:
                _run("tritonpress-query", *request, "--url", url)
            load = ["tritonpress-load", "run", SCENARIO, "--out", report, "--url", url]
            _run(*load, "--duration-scale", options.duration_scale)
            served = {name: _metrics(recipe, url) for name, recipe in recipes.items()}
        finally:
            _stop(server)
    except subprocess.CalledProcessError as exc:
        print(f"demo: {shlex.join(map(str, exc.cmd))} ended with status {exc.returncode}", file=sys.stderr)
        return int(exc.returncode)
    except KeyboardInterrupt:
        print("demo: interrupted; everything that was started has been stopped", file=sys.stderr)
        return 130
    manifests = {name: repository.read_manifest(options.repository, name) for name in WORKLOADS}
    results = json.loads((report / "results.json").read_text(encoding="utf-8"))
    print(f"\n{_closing_table(manifests, results, served)}\n")
    print(f"report: {report}/report.html   repository: {options.repository}/   {time.monotonic() - start:.0f} s in all")
    return 0


def _closing_table(
    manifests: dict[str, dict[str, Any]], results: dict[str, Any], served: dict[str, dict[str, float]]
) -> str:
    """Returns for each workload the FP32 baseline, what is served, and how it is served beside the others."""
    rows: list[list[str]] = []
    for name, manifest in manifests.items():
        metric = manifest["gate"]["metric"]
        rows.append([name, "", "", "", "", metric])
        for stage in (manifest["stages"][0], manifest["stages"][-1]):
            label = f"  {stage['stage']}, in process, {LATENCY_TOKENS} tokens"
            figures = [f"{stage['latency_ms']:.2f}", "", f"{1000 / stage['latency_ms']:.0f}"]
            rows.append([label, f"{stage['size_bytes'] / 1e6:.1f}", *figures, f"{stage['metrics'][metric]:#.4g}"])
        size = f"{repository.size_bytes(manifest) / 1e6:.1f}"
        for stage in results["stages"]:
            label = f"  served by Triton, {stage['users']} user{'s' if stage['users'] > 1 else ''} in all"
            rows.append([label, size, *_load_figures(stage["by_model"][name]), f"{served[name][metric]:#.4g}"])
    return render(["", "size MB", "p50 ms", "p99 ms", "requests/s", "metric"], rows)


def _load_figures(figures: dict[str, Any]) -> list[str]:
    """Returns p50, p99 and the rate of one model's requests."""
    latency = figures["latency_ms"]
    percentiles = [f"{latency[name]:.2f}" if latency else "" for name in ("p50", "p99")]
    return [*percentiles, f"{figures['throughput_per_s']:.0f}"]


def _metrics(recipe: Path, url: str) -> dict[str, float]:
    """Returns the task's metrics of the answers that the server gives to the labelled data."""
    answer = json.loads(_run("tritonpress", "evaluate", recipe, "--target", url, "--json", stdout=subprocess.PIPE))
    metrics: dict[str, float] = answer["metrics"]
    return metrics


def _run(*command: object, stdout: int | None = None) -> str:
    """Returns what the command prints, if it is piped here."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    return subprocess.run(words, check=True, stdout=stdout, text=True).stdout


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
    # Not SIGINT, which what was started in the background ignores.
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(timeout=40)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
