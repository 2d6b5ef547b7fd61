"""Runs a scenario against a server and writes what it found."""

from __future__ import annotations

import json
import math
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from tritonpress_client import Connection, ServerMetadata

from tritonpress_loadtests import environment
from tritonpress_loadtests.errors import LoadGeneratorError, NothingMeasuredError, ScenarioError
from tritonpress_loadtests.plots import write_plots
from tritonpress_loadtests.report import write_report
from tritonpress_loadtests.results import Results, Samples, summarise_stage, verdict
from tritonpress_loadtests.scenario import LoadedScenario, load_scenario

Progress = Callable[[dict[str, Any]], None]


def run(
    scenario: Path, url: str, out_dir: Path, *, duration_scale: float = 1.0, progress: Progress | None = None
) -> Results:
    """Returns the results (see `tritonpress_loadtests.results`) after writing them to `out_dir`.

    Writes `results.json`, `report.html`, `throughput_latency.png` and `latency.png`. SIGINT and SIGTERM end the stage
    in hand; what was measured is reported with `interrupted` set.

    Args:
        scenario: The scenario's file.
        url: `HOST:PORT` of Triton's gRPC endpoint.
        out_dir: Made if it is missing; earlier results in it are replaced once the run has ended.
        duration_scale: The scenario's durations are multiplied by it.
        progress: Called with the load generator's events (see `tritonpress_loadtests.locust_process`).

    Raises:
        ScenarioError: The scenario or an argument is at fault.
        LoadGeneratorError: The load generator ended without a result.
        NothingMeasuredError: The run was interrupted before its first stage.
        TritonpressError: The server or the model cannot be reached before the run.
    """
    if not (math.isfinite(duration_scale) and duration_scale > 0):
        raise ScenarioError(f"`duration_scale` must be a finite number above 0, got {duration_scale:g}")
    loaded = load_scenario(scenario)
    server = _check_server(loaded, url)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ScenarioError(f"cannot make the folder {out_dir}: {exc.strerror}; give another --out") from exc
    started_at = datetime.now().astimezone().isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="tritonpress-load-") as folder:
        events = _generate_load(loaded, url, Path(folder), duration_scale, progress)
        measured = [event for event in events if event["event"] == "stage"]
        samples = [np.load(Path(folder) / f"stage-{event['stage']}.npy") for event in measured]
    stages = [summarise_stage(event, part, loaded.models) for event, part in zip(measured, samples, strict=True)]
    command = ["tritonpress-load", "run", str(scenario), "--out", str(out_dir), "--url", url]
    slo_by_model = {kind.model: kind.slo for kind in loaded.scenario.requests if kind.slo is not None}
    results: Results = {
        "schema": "tritonpress-load/2",
        "scenario": _as_used(loaded),
        "url": url,
        "command": shlex.join(command + (["--duration-scale", f"{duration_scale:g}"] if duration_scale != 1 else [])),
        "started_at": started_at,
        "loop": "closed",
        "interrupted": not any(event["event"] == "end" and not event["interrupted"] for event in events),
        "duration_scale": duration_scale,
        "stages": stages,
        "slo": verdict(stages, loaded.scenario.slo, slo_by_model),
        "server": {"name": server.name, "version": server.version},
        "versions": environment.versions(),
        "machine": environment.machine(),
    }
    _write(results, samples, out_dir)
    return results


def _check_server(loaded: LoadedScenario, url: str) -> ServerMetadata:
    """Returns what the server is, after asking whether it answers and each model speaks its workload's contract."""
    timeout_s = loaded.scenario.timeout_s
    for kind in loaded.requests:
        with kind.workload.connect(url, model=kind.request.model, timeout_s=timeout_s) as client:
            kind.workload.check(client)
    with Connection(url, timeout_s=timeout_s) as connection:
        return connection.server_metadata()


def _as_used(loaded: LoadedScenario) -> dict[str, Any]:
    """Returns the scenario's keys, and what tells this test from another."""
    requests = [
        {**kind.request.model_dump(mode="json"), "queries_count": len(kind.queries)} for kind in loaded.requests
    ]
    keys = loaded.scenario.model_dump(mode="json")
    return {**keys, "requests": requests, "path": str(loaded.path), "sha256": loaded.sha256}


def _generate_load(
    loaded: LoadedScenario, url: str, samples: Path, duration_scale: float, progress: Progress | None
) -> list[dict[str, Any]]:
    """Returns the events of the load generator's process."""
    command = [sys.executable, "-m", "tritonpress_loadtests.locust_process", str(loaded.path), "--url", url]
    command += ["--samples", str(samples), "--duration-scale", repr(duration_scale)]
    log_path = samples / "log.txt"
    events = []
    with (
        log_path.open("wb") as log,
        # A session of its own: Ctrl-C reaches this process alone, which then asks for an orderly end.
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        ) as process,
        _ended_by_signals(process) as signals,
    ):
        for line in process.stdout or ():
            event = json.loads(line)
            events.append(event)
            if progress is not None:
                progress(event)
    if not any(event["event"] == "stage" for event in events):
        if signals:
            raise NothingMeasuredError("interrupted before the first stage; nothing is written")
        said = log_path.read_text(encoding="utf-8", errors="replace").split("\n")
        reason = next((line for line in reversed(said) if line.strip()), "it said nothing")
        raise LoadGeneratorError(f"the load generator ended with status {process.returncode}: {reason}")
    return events


@contextmanager
def _ended_by_signals(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Passes SIGINT and SIGTERM on as a wish to end, and the second one as an order; yields the signals that came."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            process.terminate()
        else:
            process.kill()

    if threading.current_thread() is not threading.main_thread():
        yield received  # signals belong to the main thread
        return
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(results: Results, samples: list[Samples], out_dir: Path) -> None:
    write_plots(results, samples, out_dir)
    write_report(results, samples, out_dir / "report.html")
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    unfinished = out_dir / "results.json.part"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(out_dir / "results.json")
