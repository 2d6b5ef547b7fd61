"""Energy of the engine against torch and plain ONNX Runtime, at fixed shapes, where the machine counts it.

With an engine of a GPU, the GPU's is in it; what cannot be counted is said.
"""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator.bench.engine import compared, feeds, shapes_of
from tritonpress_generator.bench.timing import rate, spread
from tritonpress_generator.bench.variants import Bench
from tritonpress_generator.energy import Meter
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.table import render


def section(bench: Bench) -> Any:
    """Returns and prints the joules of 1,000 sequences, or says why they are not known."""
    gpu = _on_gpu(bench)
    meter = Meter.here(gpu=gpu)
    if not meter.counters:
        print(f"J per 1,000 sequences: n/a; {meter.missing}\n", flush=True)
        return {"missing": meter.missing}
    missing = [meter.missing] if meter.missing else []
    if gpu and not bench.recipe.engine.module.runs_here():
        missing.append("the served engine runs on the CPU here, on a GPU where it is served")
    if missing:
        print(f"No whole figure: {'; '.join(missing)}", flush=True)
    engines, shapes = compared(bench), shapes_of(bench)
    batches = feeds(bench.source.calibration, shapes)
    taken: dict[str, list[list[float]]] = {name: [[] for _ in batches] for name in engines}
    for number, feed in enumerate(batches):
        for turn in range(bench.rounds + 1):
            for name, infer in engines.items():
                joules = of_thousand(meter, infer, feed, bench.slice_s)
                taken[name][number] += [joules] if turn else []
    header = ["J per 1,000 sequences", *(f"{batch}×{length}" for batch, length in shapes)]
    print(render(header, [[name, *(spread(own, unit="") for own in rows)] for name, rows in taken.items()]) + "\n")
    return [
        {"engine": name, "shape": shape, "joules_per_1000": own} | ({"missing": "; ".join(missing)} if missing else {})
        for name, rows in taken.items()
        for shape, own in zip(shapes, rows, strict=True)
    ]


def _on_gpu(bench: Bench) -> bool:
    """Says whether the recipe's engine is one of a GPU."""
    engine, form = bench.recipe.engine, bench.forms(bench.own)["exact"]
    groups = engine.module.model_config(engine.config, form.asked).instance_group
    return any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in groups)


def of_thousand(meter: Meter, infer: Infer, feed: dict[str, Array], slice_s: float) -> float:
    """Returns the J that 1,000 sequences take, by those of a slice."""
    asked = 0

    def ask() -> None:
        nonlocal asked
        infer(feed)
        asked += len(feed["input_ids"])

    joules = meter.joules(lambda: rate(ask, slice_s))
    return joules / asked * 1000
