"""What a whole request costs beside the bare engine: in process, and served to one client."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonpress_generator.bench.in_process import PARTS, InProcess
from tritonpress_generator.bench.messages import Messages
from tritonpress_generator.bench.texts import Request, filled_texts, requests
from tritonpress_generator.bench.timing import closed_loop, spread
from tritonpress_generator.bench.variants import Bench
from tritonpress_generator.table import render
from tritonpress_generator.workload import Workload

BATCHES = (1, 4, 16)
SHORT_TOKENS = 32
WINDOWS = 20
BARE, WHOLE, SERVED = "bare engine", "in process", "served"


def section(bench: Bench) -> Any:
    """Returns and prints the ms of requests of several sizes, of the engine alone, in process and served."""
    local = bench.in_process(bench.own)
    rows, figures = [], []
    for label, request in _asked(bench.workload).items():
        with bench.messages(bench.own, "single", [request]) as messages:
            measured = _measured(local, request, messages, bench)
        row = [label, f"{np.median(measured[BARE]):.2f}"]
        for way in (WHOLE, SERVED):
            row += [f"{np.median(measured[way]):.2f}", spread(measured[way] / measured[BARE])]
        shares = [np.median(measured[part] / measured[WHOLE]) for part in ("tokenizer", "postprocessing")]
        rows.append([*row, *(f"{share:.1%}" for share in shares)])
        figures.append({"request": label} | {f"{part}_ms": values.tolist() for part, values in measured.items()})
    print(f"{bench.own.upper()}, one request at a time in one instance; ratios are to its bare engine")
    header = ["request", f"{BARE} ms", f"{WHOLE} ms", "ratio", f"{SERVED} p50 ms", "ratio"]
    header += ["tokenizer's share", "post-processing's share"]
    print(render(header, rows) + "\n", flush=True)
    return figures


def _asked(workload: Workload) -> dict[str, Request]:
    """Returns requests of several texts of few and of the most tokens, and of one text of many windows, if it may be.

    A text of the most tokens fills its one sequence exactly.
    """
    serve = workload.recipe.serve
    asked = {}
    for tokens in sorted({min(SHORT_TOKENS, serve.max_length), serve.max_length}):
        for batch in (batch for batch in BATCHES if batch <= serve.max_batch_size):
            (asked[f"{batch} × {tokens} tokens"],) = requests(filled_texts(workload, tokens, batch), batch)
    if workload.recipe.task.module.WINDOWS:
        texts = filled_texts(workload, WINDOWS * serve.max_length, 1)
        (asked[f"1 × {WINDOWS} windows of {serve.max_length}"],) = requests(texts)
    return asked


def _measured(local: InProcess, request: Request, messages: Messages, bench: Bench) -> dict[str, NDArray[np.float64]]:
    """Returns the median ms of a request in each way, and of each part of the work in process, round by round."""
    alone = local.engine_alone([request])
    rounds: list[list[float]] = []
    for _ in range(bench.rounds + 1):
        parts: list[list[float]] = []
        engine_ms = closed_loop(alone, 1, bench.slice_s)[1]
        closed_loop(lambda *_: parts.append(local.parts_ms(request)), 1, bench.slice_s)  # noqa: B023
        served_ms = closed_loop(messages, 1, bench.slice_s)[1]
        whole_ms = np.sum(parts, axis=1)
        rounds.append([*map(float, map(np.median, (engine_ms, whole_ms, served_ms))), *np.median(parts, axis=0)])
    return dict(zip((BARE, WHOLE, SERVED, *PARTS), np.array(rounds[1:]).T, strict=True))
