"""Says what each precision costs and gives on `engine: onnxruntime_edge`; the table of docs/measurements.md.

HF_HUB_OFFLINE=1 .venv/bin/python docs/edge_precisions.py generator/recipes/classification.yaml
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from tritonpress_generator import forms, peak_memory
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import alone
from tritonpress_generator.bench.engine import SHAPES, feeds, sequence_rates
from tritonpress_generator.bench.timing import spread
from tritonpress_generator.engines import onnxruntime_edge as engine
from tritonpress_generator.graph import fixed_point, quantize
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.progress import Progress
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.table import render
from tritonpress_generator.workload import Workload

PEAKS = ("loaded", "one_sequence", "full_batch", "mixed_batches")


def graphs(fused: onnx.ModelProto, samples: list[dict[str, Array]]) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yields the model in each precision."""
    yield "FP32", fused
    yield "quantize (INT8)", quantize.apply(fused, quantize.Config(), samples)
    for bits in (8, 16):
        for power_of_two in (False, True):
            config = fixed_point.Config.model_validate({"bits": bits, "power_of_two_scales": power_of_two})
            name = f"fixed_point, {bits} bits" + (", powers of two" if power_of_two else "")
            yield name, fixed_point.apply(fused, config, samples)


def prepared(path: Path) -> Recipe:
    """Returns the recipe at `path`, its graph fused and of exact lengths."""
    recipe = recipes.load(path)
    fuse = tuple(stage for stage in recipe.graph if stage.word == "fuse")
    return replace(recipe, graph=fuse, lengths=recipes.lengths_of("exact", recipe.engine, path=path))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="Says what each precision costs and gives on a small machine.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slice-s", type=float, default=0.3)
    options = parser.parse_args()
    recipe = prepared(options.recipe)
    workload = Workload.load(recipe, Progress())
    source = workload.source()
    form = forms.compile_forms(recipe, source)["exact"]
    parameters = {
        key: value.string_value for key, value in engine.model_config(engine.Config(), form.asked).parameters.items()
    }
    infers: dict[str, Infer] = {}
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for number, (name, graph) in enumerate(graphs(form.model, [feed for _, feed in alone(source.calibration)])):
            folder = Path(work) / str(number)
            engine.build({name: graph}, folder, engine.Config(), form.asked)
            infers[name] = engine.load(folder, engine.Config())
            peak = peak_memory.measure("onnxruntime_edge", folder, parameters, form.asked)
            metric = workload.metrics(workload.answers(infers[name]))[recipe.gate.metric]
            figures = [f"{peak_memory.mib(getattr(peak, figure)):.0f}" for figure in PEAKS]
            rows.append([name, f"{(folder / engine.MODEL).stat().st_size / 1e6:.1f}", *figures, f"{metric:.4f}"])
        shape = f"{form.asked.max_batch_size} × {form.asked.max_length} tokens"
        print(f"interpreter {peak_memory.mib(peak.interpreter):.0f} MiB, part of all figures; full batch {shape}")
        print(render(["", "file MB", *(f"{name} MiB".replace("_", " ") for name in PEAKS), recipe.gate.metric], rows))
        rates = sequence_rates(infers, feeds(source.calibration, SHAPES), options.rounds, options.slice_s)
    speeds = [
        [name, *(spread(np.divide(own, fp32)) for own, fp32 in zip(rates[name], rates["FP32"], strict=True))]
        for name in rates
    ]
    print(render(["to FP32, one thread", *(f"{batch}×{length}" for batch, length in SHAPES)], speeds))


if __name__ == "__main__":
    main()
