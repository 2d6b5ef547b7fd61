"""Compares OpenVINO's engine with ONNX Runtime's, interleaved, and their metrics; the table of docs/measurements.md.

HF_HUB_OFFLINE=1 .venv/bin/python docs/openvino_speed.py generator/recipes/classification.yaml
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from tritonpress_generator import forms
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import alone
from tritonpress_generator.bench.engine import SHAPES, feeds, sequence_rates
from tritonpress_generator.bench.timing import spread
from tritonpress_generator.engines import openvino
from tritonpress_generator.graph import qdq
from tritonpress_generator.infer import Infer
from tritonpress_generator.progress import Progress
from tritonpress_generator.table import render
from tritonpress_generator.workload import Workload


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Compares OpenVINO's engine with ONNX Runtime's.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slice-s", type=float, default=0.3)
    options = parser.parse_args()
    recipe = recipes.load(options.recipe)
    recipe = replace(recipe, lengths=recipes.lengths_of("exact", recipe.engine, path=options.recipe))
    workload = Workload.load(recipe, Progress())
    source = workload.source()
    form = forms.compile_forms(recipe, source)["exact"]
    int8 = qdq.apply(form.fp32, qdq.Config(), [feed for _, feed in alone(source.calibration)])
    engines: dict[str, Infer] = {
        "torch eager FP32": workload.baseline,
        "ONNX Runtime INT8 (served engine)": form.infer(recipe.engine),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, graph in (("as it chooses", form.fp32), ("qdq INT8", int8)):
            config, place = openvino.Config(), Path(folder) / name
            openvino.build(openvino.rungs(form.fp32, graph, config), place, config, form.asked)
            engines[f"OpenVINO, {name}"] = openvino.load(place, config)
        rates = sequence_rates(engines, feeds(source.calibration), options.rounds, options.slice_s)
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
