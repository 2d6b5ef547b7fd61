"""Compares OpenVINO's engine with ONNX Runtime's, interleaved, and their metrics; the table of docs/measurements.md.

HF_HUB_OFFLINE=1 .venv/bin/python docs/openvino_speed.py generator/recipes/classification.yaml
HF_HUB_OFFLINE=1 .venv/bin/python docs/openvino_speed.py generator/recipes/classification.yaml \\
    --data DATA --keep 0.995    # NNCF with accuracy control too, on the labelled examples in DATA
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tritonpress_generator import forms
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import alone
from tritonpress_generator.bench.engine import SHAPES, feeds, sequence_rates
from tritonpress_generator.bench.timing import spread
from tritonpress_generator.engines import openvino
from tritonpress_generator.graph import GraphMaterial, nncf, qdq
from tritonpress_generator.infer import Infer
from tritonpress_generator.progress import Progress
from tritonpress_generator.table import render
from tritonpress_generator.workload import Workload


def quantized(form: forms.Form, source: forms.Source, keep: float | None) -> dict[str, onnx.ModelProto]:
    """Returns the graphs in INT8, by name; says how long each took and what it leaves in FP32."""
    samples = [feed for _, feed in alone(source.calibration)]
    engine = recipes.Stage("openvino", openvino, openvino.Config())
    score = lambda graph: source.score(replace(form, model=graph).infer(engine))  # noqa: E731
    material = GraphMaterial(score=score, held_out=source.held_out)
    ways: dict[str, tuple[Any, Any]] = {
        "qdq INT8": (qdq, qdq.Config()),
        "NNCF INT8": (nncf, nncf.Config()),
        "NNCF INT8, no smoothing": (nncf, nncf.Config(smooth_quant_alpha=None)),
    }
    if keep is not None:
        ways[f"NNCF INT8, keep {keep:g}"] = (nncf, nncf.Config(keep=keep))
    graphs = {}
    for name, (module, config) in ways.items():
        began = time.monotonic()
        graphs[name] = module.apply(form.fp32, config, samples, material)
        pairs = sum(node.op_type == "DequantizeLinear" for node in graphs[name].graph.node)
        size = graphs[name].ByteSize() / 1e6
        print(f"{name}: {time.monotonic() - began:.0f} s, {pairs} times back from INT8, {size:.1f} MB", file=sys.stderr)
    return graphs


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Compares OpenVINO's engine with ONNX Runtime's.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slice-s", type=float, default=0.3)
    parser.add_argument("--data", type=Path, help="folder of the recipe's `data`, for --keep")
    parser.add_argument("--keep", type=float, help="accuracy control: the share of FP32's metric that must be kept")
    options = parser.parse_args()
    recipe = recipes.load(options.recipe)
    recipe = replace(recipe, lengths=recipes.lengths_of("exact", recipe.engine, path=options.recipe))
    workload = Workload.load(recipe, Progress())
    source = workload.source(material=workload.material(options.data) if options.data else None)
    form = forms.compile_forms(recipe, source)["exact"]
    graphs = {"as it chooses": form.fp32, **quantized(form, source, options.keep)}
    engines: dict[str, Infer] = {
        "torch eager FP32": workload.baseline,
        "ONNX Runtime INT8 (served engine)": form.infer(recipe.engine),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, graph in graphs.items():
            config, place = openvino.Config(), Path(folder) / name
            openvino.build(openvino.rungs(form.fp32, graph, config), place, config, form.asked)
            engines[f"OpenVINO, {name}"] = openvino.load(place, config)
        rates = sequence_rates(engines, feeds(source.calibration, SHAPES), options.rounds, options.slice_s)
        rows = []
        first = rates["torch eager FP32"]
        for name, of_shape in rates.items():
            ratios = [np.divide(own, torch) for own, torch in zip(of_shape, first, strict=True)]
            cells = [f"{np.median(own):.0f}  {spread(ratio)}" for own, ratio in zip(of_shape, ratios, strict=True)]
            metric = workload.metrics(workload.answers(engines[name]))[recipe.gate.metric]
            rows.append([name, *cells, f"{metric:.4f}"])
    print(render(["sequences/s", *(f"{batch}×{length}" for batch, length in SHAPES), recipe.gate.metric], rows))


if __name__ == "__main__":
    main()
