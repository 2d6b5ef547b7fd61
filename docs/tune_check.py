"""`tritonpress tune` beside Model Analyzer's quick search: the same texts, limit and time; then both results in turn.

    python docs/tune_check.py model_repo --model-analyzer PATH --perf-analyzer PATH [--minutes 8 --p99-ms 100]

Model Analyzer (tested: triton-model-analyzer 1.58) runs in remote mode, on the step that does the work: its quick
search takes a single model here. It is told that the model is of the CPU, and keeps the threads of the config. It
searches at a concurrency, and we at a rate, so its best is what had the highest throughput with p99 within the limit.
Then each best, and the configs as they are, are given to the same server in turn, and for each the highest Poisson rate
is searched at which p99 stays within the limit. See docs/perf_analyzer.py for what perf_analyzer needs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import builds
from tritonpress_generator.tune import knobs as turning
from tritonpress_generator.tune.bench import bench
from tritonpress_generator.tune.climb import Climb
from tritonpress_generator.tune.knobs import Knob, Setting
from tritonpress_generator.tune.load import Traffic
from tritonpress_generator.tune.run import tune
from tritonpress_generator.tune.session import TuneConfig
from tritonpress_server import TritonServer

ROOT = Path(__file__).parents[1]
TEXTS = ROOT / "generator" / "recipes" / "classification" / "financial_news.tsv"
SCENARIO = ROOT / "loadtests" / "scenarios" / "classification.yaml"
MODEL = "classification"
ROUNDS = 3
_ENDING_S = 60.0


def main() -> None:
    """Searches twice, measures in turn, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, help="with `classification`, a build of one step")
    parser.add_argument("--model-analyzer", type=Path, required=True, help="the command")
    parser.add_argument("--perf-analyzer", type=Path, required=True, help="the binary")
    parser.add_argument("--minutes", type=float, default=8, help="of each search (%(default)s)")
    parser.add_argument("--p99-ms", type=float, default=100, help="(%(default)s)")
    arguments = parser.parse_args()
    manifest = builds.read_manifest(arguments.repository, MODEL)
    configs = turning.read_configs(arguments.repository, manifest, MODEL)
    (step,) = manifest["steps"].values()
    knobs = turning.knobs(
        configs,
        manifest["steps"],
        workload=MODEL,
        engine=manifest["engine"],
        cores=len(os.sched_getaffinity(0)),
        p99_ms=arguments.p99_ms,
    )
    settings: dict[str, Setting] = {"as it is": {knob.key: knob.now for knob in knobs}}
    with tempfile.TemporaryDirectory() as name:
        theirs, tried = _theirs(arguments, step, Path(name))
        print(f"Model Analyzer: {tried} configs measured", file=sys.stderr)
        if theirs is not None:
            settings["Model Analyzer"] = {knob.key: turning.KINDS[knob.kind].read(theirs) for knob in knobs}
        config = TuneConfig(arguments.p99_ms, budget_minutes=arguments.minutes, scenario=SCENARIO)
        found = tune(arguments.repository, config, Path(name) / "tuned")
        print(f"tritonpress tune: {len({*map(str, (t.setting for t in found.tried))})} configs tried", file=sys.stderr)
        settings["tritonpress tune"] = found.best.setting
        rates = _in_turn(arguments, configs, knobs, settings)
    print(f"| configs | what | requests/s within {arguments.p99_ms:g} ms | over as it is |\n| --- | --- | --- | --- |")
    first = np.array(rates["as it is"])
    for which, setting in settings.items():
        own = np.array(rates[which])
        ratio = own / first
        print(
            f"| {which} | {turning.words(knobs, setting)} | {np.median(own):.0f} [{own.min():.0f}–{own.max():.0f}] "
            f"| {np.median(ratio):.2f} [{ratio.min():.2f}–{ratio.max():.2f}] |"
        )
    if theirs is None:
        print("| Model Analyzer | nothing within the limit was found in the time | | |")


def _theirs(arguments: argparse.Namespace, step: str, folder: Path) -> tuple[pb.ModelConfig | None, int]:
    """Returns Model Analyzer's config with the highest throughput within the limit, and how many it has measured."""
    queries = folder / "queries.json"
    texts = [line.split("\t")[0] for line in TEXTS.read_text(encoding="utf-8").splitlines()[1:]]
    queries.write_text(json.dumps({"data": [{"TEXT": {"content": [text], "shape": [1]}} for text in texts]}))
    flags = {"input-data": str(queries), "percentile": 99}
    plan = {"profile_models": {step: {"cpu_only": True, "perf_analyzer_flags": flags}}}
    (folder / "analyze.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    variants = folder / "variants"
    variants.mkdir()
    more = [f"--model-repository={variants}"]
    with TritonServer(arguments.repository, models=[], extra_args=more) as server:
        command = [str(arguments.model_analyzer), "profile", "-f", str(folder / "analyze.yaml")]
        command += ["--model-repository", str(arguments.repository), "--triton-launch-mode", "remote"]
        command += ["--output-model-repository-path", str(variants), "--override-output-model-repository"]
        command += ["--triton-grpc-endpoint", server.grpc_url, "--triton-http-endpoint", server.http_url]
        command += ["--triton-metrics-url", f"http://{server.metrics_url}/metrics", "--client-protocol", "grpc"]
        command += ["--perf-analyzer-path", str(arguments.perf_analyzer), "--gpus", "[]"]
        command += ["--run-config-search-mode", "quick", "--latency-budget", f"{arguments.p99_ms:g}"]
        command += ["--checkpoint-directory", str(folder / "checkpoint"), "--export-path", str(folder / "export")]
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                process.wait(60 * arguments.minutes)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(_ENDING_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        print((folder / "log.txt").read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
    return _best(folder / "checkpoint", arguments.p99_ms)


def _best(folder: Path, limit_ms: float) -> tuple[pb.ModelConfig | None, int]:
    """Returns the best config of Model Analyzer's last checkpoint, and how many there are."""
    checkpoints = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        return None, 0
    saved = json.loads(checkpoints[-1].read_text(encoding="utf-8"))
    (of_model,) = saved["ResultManager.results"]["_results"].values()
    best: tuple[float, dict[str, Any]] | None = None
    for settings, measured in of_model.values():
        for row in measured.values():
            figures = {name: entry["_value"] for name, entry in row["_model_config_measurements"][0]["_non_gpu_data"]}
            if figures["perf_latency_p99"] <= limit_ms and (best is None or figures["perf_throughput"] > best[0]):
                config = settings["_model_run_configs"][0]["_model_config_variant"]["model_config"]
                best = figures["perf_throughput"], config
    if best is None:
        return None, len(of_model)
    print(f"Model Analyzer's best: {best[0]:.0f}/s at its concurrency", file=sys.stderr)
    return json_format.ParseDict(best[1], pb.ModelConfig()), len(of_model)


def _in_turn(
    arguments: argparse.Namespace, configs: turning.Configs, knobs: list[Knob], settings: dict[str, Setting]
) -> dict[str, list[float]]:
    """Returns the highest rate within the limit of each setting, round by round."""
    traffic = Traffic.read(SCENARIO)
    rates: dict[str, list[float]] = {which: [] for which in settings}
    with bench(arguments.repository, configs, knobs) as served:

        def measure(setting: Setting, rate: float, before: int) -> Any:
            return traffic.at(served.url, rate, arguments.p99_ms)

        guess = 0.0
        for number in range(ROUNDS):
            for which in sorted(settings, reverse=number % 2 == 1):
                served.serve(settings[which])
                began = time.monotonic()
                climb = Climb(measure, arguments.p99_ms, guess or traffic.most(served.url))
                climb.run([])
                rate = climb.best.rate_per_s if climb.best else 0.0
                guess = guess or rate
                rates[which].append(rate)
                print(f"{number + 1} {which}: {rate:.0f}/s, {time.monotonic() - began:.0f} s", file=sys.stderr)
    return rates


if __name__ == "__main__":
    main()
