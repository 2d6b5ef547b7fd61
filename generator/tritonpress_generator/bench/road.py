"""Where each microsecond of a served request goes: what Triton counts, what the work itself takes, who uses the CPU."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from tritonpress_client.connection import Connection
from tritonpress_client.statistics import ModelStatistics
from tritonpress_server import TritonServer

from tritonpress_generator.bench.in_process import PARTS
from tritonpress_generator.bench.messages import Messages
from tritonpress_generator.bench.texts import requests
from tritonpress_generator.bench.timing import closed_loop
from tritonpress_generator.bench.variants import Bench
from tritonpress_generator.table import render

LAYOUTS = ("single", "ensemble")
"""Those in which each part of a request is in one model, so that it can be told from the others."""
_SLICES = 20
_SLICES_WARM_UP = 3
_BUSY = 16


def section(bench: Bench) -> dict[str, Any]:
    """Returns and prints where the time of a request goes: µs by part with one caller, CPU time by process with 16."""
    asked = requests(bench.texts)
    local = bench.in_process(bench.own)
    means = np.mean([local.parts_ms(request) for request in asked], axis=0) * 1e3
    work: dict[str, float] = dict(zip(PARTS, means.tolist(), strict=True))
    seconds = _SLICES * bench.slice_s
    alone: dict[str, dict[str, float]] = {}
    busy: dict[str, dict[str, float]] = {}
    for layout in (layout for layout in LAYOUTS if layout in bench.layouts):
        manifest = bench.built(bench.own, layout).manifest
        with bench.messages(bench.own, layout, asked) as messages:
            closed_loop(messages, 2, _SLICES_WARM_UP * bench.slice_s)
            alone[layout] = _parts_us(bench.server, manifest, messages, work, seconds)
            busy[layout] = _cpu_us(bench.server, manifest["steps"], messages, seconds)
    print("µs of a request, one at a time (mean)")
    print(_table(alone) + "\n")
    print(f"µs of CPU time of a request, {_BUSY} at a time, by process")
    print(_table(busy) + "\n", flush=True)
    return {"wall_us": alone, "cpu_us": busy}


def _parts_us(
    server: TritonServer, manifest: dict[str, Any], messages: Messages, work: dict[str, float], seconds: float
) -> dict[str, float]:
    steps: dict[str, str] = manifest["steps"]
    with Connection(server.grpc_url) as connection:
        before = {entry.name: entry for entry in connection.statistics()}
        _, times = closed_loop(messages, 1, seconds)
        spent = {entry.name: entry - before[entry.name] for entry in connection.statistics()}
    ensemble = spent[manifest["workload"]].success.mean_us
    parts = {"client and gRPC": float(times.mean() * 1e3) - ensemble}
    parts["Triton's core, between steps"] = ensemble - sum(spent[step].success.mean_us for step in steps.values())
    for role, step in steps.items():
        own = work if role == "model" else {role: work[role]}
        parts |= {part: parts.get(part, 0.0) + us for part, us in own.items()}
        parts["queues"] = parts.get("queues", 0.0) + spent[step].queue.mean_us
        parts["copies"] = parts.get("copies", 0.0) + _copies_us(spent[step])
        hop = spent[step].compute_infer.mean_us - sum(own.values())
        parts["hops to Python"] = parts.get("hops to Python", 0.0) + hop
    return parts | {"in all": float(times.mean() * 1e3)}


def _copies_us(spent: ModelStatistics) -> float:
    return spent.compute_input.mean_us + spent.compute_output.mean_us


def _cpu_us(server: TritonServer, steps: dict[str, str], messages: Messages, seconds: float) -> dict[str, float]:
    stubs = _stubs(server.pid)
    pids = {"tritonserver": server.pid, "load generator": os.getpid()}
    groups = {label: [pid] for label, pid in pids.items()}
    for role, step in steps.items():
        groups[f"{role} step"] = [pid for pid, command in stubs.items() if f"/{step}/" in command]
    before = {label: sum(map(_cpu_s, members)) for label, members in groups.items()}
    start = time.perf_counter()
    _, times = closed_loop(messages, _BUSY, seconds)
    elapsed = time.perf_counter() - start
    spent = {label: sum(map(_cpu_s, members)) - before[label] for label, members in groups.items()}
    parts = {label: used / len(times) * 1e6 for label, used in spent.items()}
    in_all = sum(parts.values())
    return parts | {"in all": in_all, "idle": len(os.sched_getaffinity(0)) * elapsed / len(times) * 1e6 - in_all}


def _stubs(parent: int) -> dict[int, str]:
    """Returns the command line of each child of `parent`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PPid:\t{parent}\n" in (folder / "status").read_text():
                found[int(folder.name)] = (folder / "cmdline").read_text()
        except FileNotFoundError:
            continue  # it has ended meanwhile
    return found


def _cpu_s(pid: int) -> float:
    """Returns the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _table(columns: dict[str, dict[str, float]]) -> str:
    """Returns the parts as rows, the totals last."""
    totals = ("in all", "idle")
    parts = list(dict.fromkeys(part for column in columns.values() for part in column if part not in totals))
    parts += [part for part in totals if any(part in column for column in columns.values())]
    rows = [[part, *(f"{c[part]:.0f}" if part in c else "" for c in columns.values())] for part in parts]
    return render(["", *columns], rows)
