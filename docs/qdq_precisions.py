"""Says what a task's metric is in each precision for TensorRT, run by ONNX Runtime; the table of docs/measurements.md.

HF_HUB_OFFLINE=1 .venv/bin/python docs/qdq_precisions.py generator/recipes/classification.yaml
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
from tritonpress_generator import forms
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import alone
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.graph import qdq
from tritonpress_generator.infer import Array
from tritonpress_generator.mixed_precision import typed
from tritonpress_generator.progress import Progress
from tritonpress_generator.table import render
from tritonpress_generator.workload import Workload

CALIBRATIONS = ("min_max", "entropy", "percentile")


def graphs(samples: list[dict[str, Array]], fp32: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yields the model in each precision."""
    yield "FP32", fp32
    yield "FP16", typed(fp32, "fp16")
    for calibration in CALIBRATIONS:
        for smooth in (True, False):
            config = qdq.Config.model_validate({"calibration": calibration, "smooth": smooth})
            name = f"INT8, {calibration}" + (", smoothed" if smooth else "")
            yield name, qdq.apply(fp32, config, samples)
    for settings in ({"attention": False}, {"residual": False}, {"attention": False, "residual": False}):
        name = f"INT8, entropy, smoothed, without {' and '.join(settings)}"
        yield name, qdq.apply(fp32, qdq.Config.model_validate(settings), samples)
    yield "INT8, entropy, smoothed, the rest FP16", typed(qdq.apply(fp32, qdq.Config(), samples), "fp16")
    for calibration in CALIBRATIONS:
        config = qdq.Config.model_validate({"calibration": calibration, "precision": "fp8"})
        yield f"FP8, {calibration}", qdq.apply(fp32, config, samples)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Says what a task's metric is in each precision for TensorRT.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--dataset", type=Path, help="labelled data (default: the gate's)")
    options = parser.parse_args()
    recipe = recipes.load(options.recipe)
    exact = recipes.lengths_of("exact", recipe.engine, path=options.recipe)
    recipe = replace(recipe, graph=(), lengths=exact)
    workload = Workload.load(recipe, Progress())
    source = workload.source()
    fp32 = forms.compile_forms(recipe, source)["exact"].fp32
    variants = graphs([feed for _, feed in alone(source.calibration)], fp32)
    asked = workload
    if options.dataset:  # the model is calibrated as the recipe says, and only then asked another set
        gate = recipe.gate.model_copy(update={"dataset": str(options.dataset.resolve())})
        asked = replace(workload, data=recipe.task.module.load_data(replace(recipe, gate=gate)))
    rows = []
    for name, graph in variants:
        metrics = asked.metrics(asked.answers(session_infer(graph.SerializeToString())))
        rows.append([name, *(f"{value:.4f}" for value in metrics.values())])
    print(render(["", *metrics], rows))


if __name__ == "__main__":
    main()
