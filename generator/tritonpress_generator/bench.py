"""Measures what a recipe builds: `python -m tritonpress_generator.bench RECIPE` (`make bench`).

All that is compared runs in turn in short slices, so that noise and drift of the machine hit all alike. A ratio is that
of two neighbouring slices; what is printed is the median of the ratios with the range that holds the middle 80 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tritonpress_client.connection import Connection
from tritonpress_server import ServerError, TritonServer

from tritonpress_generator import export, recipe
from tritonpress_generator.build import build, processor, text_encoder
from tritonpress_generator.checkpoint import load_encoder, load_tokenizer, resolve
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import GeneratorError
from tritonpress_generator.infer import Infer
from tritonpress_generator.table import render

SHAPES = ((1, 32), (8, 128), (1, 384))
CONCURRENCY = (1, 4, 16)
_VOCABULARY = (1000, 20000)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="tritonpress_generator.bench", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rounds", type=int, default=15, help="how often each slice is repeated (default: 15)")
    parser.add_argument("--slice-s", type=float, default=0.3, help="length of one engine slice in s (default: 0.3)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="tritonpress-bench-") as folder:
            figures = bench(options.recipe, Path(folder), rounds=options.rounds, slice_s=options.slice_s)
    except (GeneratorError, ServerError) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return getattr(exc, "exit_status", 2)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def bench(recipe_path: Path, folder: Path, *, rounds: int, slice_s: float) -> dict[str, Any]:
    """Returns and prints the figures of the recipe at `recipe_path`, built into `folder`."""
    built = build(recipe_path, folder)
    steps = built.manifest["steps"]
    loaded = recipe.load(recipe_path)
    engine = loaded.engine
    version_dir = folder / steps["engine"] / "1"
    checkpoint = resolve(loaded.checkpoint, base=recipe_path.parent)
    model, signature = loaded.task.module.head(load_encoder(checkpoint), checkpoint, loaded.task.config)
    exported, _ = loaded.task.module.head(
        load_encoder(checkpoint, attention=export.ATTENTION), checkpoint, loaded.task.config
    )
    engines = {
        "torch eager FP32": export.torch_infer(model, signature),
        "ONNX Runtime FP32": session_infer(export.export(exported, signature).SerializeToString()),
        "served engine": loaded.lengths.module.as_padded(engine.module.load(version_dir, engine.config), signature),
    }
    print(f"{processor()}, {len(os.sched_getaffinity(0))} cores; {rounds} rounds; median [middle 80 %]\n")
    figures: dict[str, Any] = {"engine": _engines(engines, rounds, slice_s)}
    print()
    data = loaded.task.module.load_data(loaded)
    for name, texts in (("queries", [query.query for query in data.queries]), ("items", data.texts)):
        figures[name] = _served(loaded, folder, built.manifest, name=name, texts=texts, rounds=max(5, rounds // 2))
    return figures


def _engines(engines: dict[str, Infer], rounds: int, slice_s: float) -> list[dict[str, Any]]:
    header = ["sequences/s", *(f"{batch}×{length}" for batch, length in SHAPES)]
    rates: dict[tuple[str, tuple[int, int]], list[float]] = {}
    generator = np.random.default_rng(0)
    for shape in SHAPES:
        ids = generator.integers(*_VOCABULARY, shape)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for infer in engines.values():
            _rate(lambda infer=infer, feed=feed: infer(feed), slice_s)  # type: ignore[misc]
        for _ in range(rounds):
            for name, infer in engines.items():
                rate = _rate(lambda infer=infer, feed=feed: infer(feed), slice_s)  # type: ignore[misc]
                rates.setdefault((name, shape), []).append(rate * shape[0])
    first = next(iter(engines))
    rows, figures = [], []
    for name in engines:
        cells = [name]
        for shape in SHAPES:
            ratio = np.divide(rates[name, shape], rates[first, shape])
            cells.append(f"{np.median(rates[name, shape]):.0f}  {_spread(ratio)}")
            figures.append({"engine": name, "shape": shape, "per_s": rates[name, shape], "ratio": ratio.tolist()})
        rows.append(cells)
    print(render(header, rows))
    return figures


def _served(
    loaded: recipe.Recipe, folder: Path, manifest: dict[str, Any], *, name: str, texts: list[str], rounds: int
) -> list[dict[str, Any]]:
    """Compares the served ensemble with the same work done in this process, at several numbers of callers."""
    task = loaded.task
    version = {role: folder / name / "1" for role, name in manifest["steps"].items()}
    checkpoint = resolve(loaded.checkpoint, base=loaded.path.parent)
    encoder = text_encoder(loaded, load_tokenizer(checkpoint), max_bytes=task.config.max_query_bytes)
    index = task.module.load_index(version["postprocessing"])
    cores = len(os.sched_getaffinity(0))
    model = version["engine"] / "model.onnx"
    _, signature = task.module.head(load_encoder(checkpoint), checkpoint, task.config)
    whole, single = (
        [loaded.lengths.module.as_padded(session_infer(model, threads=threads), signature) for _ in range(sessions)]
        for sessions, threads in ((1, cores), (cores, 1))
    )

    def in_process(sessions: Sequence[Infer]) -> Callable[[int, int], None]:
        def ask(caller: int, i: int) -> None:
            task.module.ask(sessions[caller % len(sessions)], encoder, index, texts[i % len(texts)])

        return ask

    rows, figures = [], []
    with TritonServer(folder, models=[loaded.name]) as server:
        connections = [Connection(server.grpc_url, timeout_s=30) for _ in range(max(CONCURRENCY))]
        try:

            def served(caller: int, i: int) -> None:
                feed = {task.module.INPUT: np.array([[texts[i % len(texts)].encode()]], np.object_)}
                connections[caller].infer(loaded.name, feed)

            ways = {"in process": in_process(whole), "one thread a session": in_process(single), "served": served}
            for callers in CONCURRENCY:
                measured: dict[str, list[tuple[float, float]]] = {label: [] for label in ways}
                # More threads than cores would only slow the in-process work: it is given its best.
                threads = {label: callers if label == "served" else min(callers, cores) for label in ways}
                for label, way in ways.items():
                    _concurrent(way, threads[label], 0.5)
                for _ in range(rounds):
                    for label, way in ways.items():
                        measured[label].append(_concurrent(way, threads[label], 1.0))
                rate = {label: np.array([r for r, _ in values]) for label, values in measured.items()}
                best = np.maximum(rate["in process"], rate["one thread a session"])
                share = rate["served"] / best
                p50 = {label: float(np.median([p for _, p in values])) for label, values in measured.items()}
                rows.append(
                    [
                        str(callers),
                        *(f"{np.median(rate[label]):.0f}" for label in ways),
                        _spread(share, unit=""),
                        *(f"{p50[label]:.2f}" for label in ("in process", "served")),
                    ]
                )
                figures.append(
                    {"callers": callers, "share": share.tolist(), "p50_ms": p50}
                    | {label: values.tolist() for label, values in rate.items()}
                )
        finally:
            for connection in connections:
                connection.close()
    header = [
        "concurrent",
        "in process/s",
        "1-thread sessions/s",
        "served/s",
        "share of the better",
        "p50 ms in process",
        "served",
    ]
    tokens = np.mean([len(row) for row in encoder.encode([text.encode() for text in texts])])
    print(f"served, the {name} as texts ({tokens:.0f} tokens on average), one a request")
    print(render(header, rows) + "\n")
    return figures


def _rate(call: Callable[[], object], seconds: float) -> float:
    """Returns calls per second over about `seconds`."""
    start = time.perf_counter()
    count = 0
    while True:
        call()
        count += 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return count / elapsed


def _concurrent(way: Callable[[int, int], None], callers: int, seconds: float) -> tuple[float, float]:
    """Returns calls per second, and the median ms of a call, of `callers` threads over `seconds`."""
    times: list[list[float]] = [[] for _ in range(callers)]
    end = time.perf_counter() + seconds

    def caller(number: int) -> None:
        i = number
        while True:
            start = time.perf_counter()
            if start >= end:
                return
            way(number, i)
            times[number].append(time.perf_counter() - start)
            i += callers

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(callers)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    calls = [value for part in times for value in part]
    return len(calls) / elapsed, float(np.median(calls) * 1e3)


def _spread(values: Any, *, unit: str = "×") -> str:
    low, middle, high = np.percentile(values, [10, 50, 90])
    return f"{middle:.2f}{unit} [{low:.2f}–{high:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
