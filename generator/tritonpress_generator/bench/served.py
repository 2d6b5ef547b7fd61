"""The share of the in-process throughput that is served."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonpress_generator.answering import Texts
from tritonpress_generator.bench.in_process import InProcess
from tritonpress_generator.bench.messages import Messages
from tritonpress_generator.bench.texts import requests
from tritonpress_generator.bench.timing import Ask, closed_loop, spread
from tritonpress_generator.bench.variants import Bench
from tritonpress_generator.infer import Infer
from tritonpress_generator.table import render

CONCURRENCY = (1, 4, 16)
_SLICES = 3
"""How many of an engine's slices one of served requests is long: it takes a while until all callers wait."""
_FEWEST_ROUNDS = 3
_EMPTY_CALLS = 60
Way = tuple[Ask, int, int]
"""What asks, from how many threads, and how many texts at a time."""


def section(bench: Bench) -> Any:
    """Returns and prints the throughput of each layout as a share of the best in process, and its latency."""
    return {precision: _compare(bench, precision) for precision in bench.graphs}


def _compare(bench: Bench, precision: str) -> list[dict[str, Any]]:
    local = bench.in_process(precision)
    asked = requests(bench.texts)
    alone = local.engine_alone(asked)
    rounds, slice_s = max(_FEWEST_ROUNDS, bench.rounds // 2), _SLICES * bench.slice_s
    figures: list[dict[str, Any]] = []
    with ExitStack() as stack:
        served = {layout: stack.enter_context(bench.messages(precision, layout, asked)) for layout in bench.layouts}
        floor_ms = [_floor_ms(alone, served[bench.layouts[0]]) for _ in range(rounds)]
        for callers in CONCURRENCY:
            ways = _ways_in_process(local, bench.texts, callers)
            asks = ways | {layout: (messages, callers, 1) for layout, messages in served.items()}
            # With more callers a request waits for others, and the engine's own time says nothing of it.
            asks |= {"engine": (alone, 1, 1)} if callers == 1 else {}
            per_s, p50_ms = _measured(asks, rounds, slice_s)
            best = np.max([per_s[label] for label in ways], axis=0)
            figures += [
                {
                    "way": layout,
                    "callers": callers,
                    "share": (per_s[layout] / best).tolist(),
                    "served_per_s": per_s[layout].tolist(),
                    "p50_ms": p50_ms[layout].tolist(),
                    "engine_p50_ms": p50_ms["engine"].tolist() if callers == 1 else None,
                    "grpc_p50_ms": floor_ms,
                    "best_in_process": max(ways, key=lambda label: float(np.median(per_s[label]))),
                    "in_process_per_s": best.tolist(),
                }
                for layout in served
            ]
    cores = len(os.sched_getaffinity(0))
    print(f"{precision.upper()}, mixed lengths, one a request, {cores} cores for server and load")
    print(f"(a gRPC call that does nothing, made after the engine has run: p50 {spread(floor_ms, unit='')} ms)")
    header = ["", "in process/s", "served/s", "share", "p50 ms", "p50 above the engine's"]
    print(render(header, [_row(figure) for figure in figures]) + "\n", flush=True)
    return figures


def _measured(
    asks: Mapping[str, Way], rounds: int, slice_s: float
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Returns texts per second and the median ms of a request of each way, round by round; the ways run in turn."""
    measured: dict[str, list[tuple[float, float]]] = {label: [] for label in asks}
    for turn in range(rounds + 1):
        for label, (ask, callers, size) in asks.items():
            per_s, times = closed_loop(ask, callers, slice_s)
            measured[label] += [(per_s * size, float(np.median(times)))] if turn else []
    pairs = {label: np.array(values) for label, values in measured.items()}
    return {label: pair[:, 0] for label, pair in pairs.items()}, {label: pair[:, 1] for label, pair in pairs.items()}


def _row(figure: Mapping[str, Any]) -> list[str]:
    engine_ms = figure["engine_p50_ms"]
    return [
        f"{figure['way']}, {figure['callers']} at a time",
        f"{np.median(figure['in_process_per_s']):.0f}",
        f"{np.median(figure['served_per_s']):.0f}",
        spread(figure["share"], unit=""),
        f"{np.median(figure['p50_ms']):.2f}",
        spread(np.subtract(figure["p50_ms"], engine_ms), unit="") if engine_ms else "",
    ]


def _ways_in_process(local: InProcess, texts: Texts, callers: int) -> dict[str, Way]:
    """Returns each way to do it in process.

    No way has more threads than cores, or more texts at a time than are asked at a time: each is given its best.
    """
    count = min(callers, len(local.instances))
    size = -(-callers // count)

    def asks(engines: list[Infer], size: int) -> Way:
        answering = [local.answering(engine) for engine in engines]
        batches = requests(texts, size)
        return lambda caller, turn: answering[caller](batches[turn % len(batches)]), len(engines), size

    instances = list(local.instances)[:count]
    return {
        "instances, one by one": asks(instances, 1),
        "instances, together": asks(instances, size),
        "all cores, one by one": asks([local.whole], 1),
        "all cores, together": asks([local.whole], callers),
    }


def _floor_ms(engine: Ask, messages: Messages) -> float:
    """Returns the median ms of a call that does nothing, made as often as the engine's work allows."""
    times = []
    for turn in range(_EMPTY_CALLS):
        engine(0, turn)
        start = time.perf_counter()
        messages.live()
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3)
