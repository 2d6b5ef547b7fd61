"""Says what each layer's INT8 costs of a task's metric; prints the tables of docs/measurements.md.

    HF_HUB_OFFLINE=1 .venv/bin/python docs/int8_sensitivity.py generator/recipes/classification.yaml --dataset texts.tsv

A row is the model in INT8 with those products in FP32 (`quantize: {exclude: …}`): what it gains is what they cost.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import onnx
from tritonpress_generator import export
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import alone
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.graph import fuse, quantize
from tritonpress_generator.pretrained import load_model
from tritonpress_generator.progress import Progress
from tritonpress_generator.table import render
from tritonpress_generator.workload import Workload

KINDS = {
    "query, key and value": "*qkv_MatMul",
    "attention's output": "*/attention/output/*",
    "feed-forward, up": "*/intermediate/*",
    "feed-forward, down": "*[0-9]/output/*",
}


def graphs(workload: Workload, fp32: onnx.ModelProto, layers: int) -> dict[str, onnx.ModelProto]:
    """Returns the model in FP32, in INT8, and in INT8 but for a part of it."""
    samples = [feed for _, feed in alone(workload.source().calibration)]
    configs = {
        "INT8, 8 bits, not smoothed": quantize.Config(reduce_range=False, smooth=False),
        "INT8, 7 bits, not smoothed": quantize.Config(smooth=False),
        "INT8, 8 bits, smoothed": quantize.Config(reduce_range=False),
        "INT8, 7 bits, smoothed": quantize.Config(),
    }
    configs |= {f"{name} in FP32": quantize.Config(exclude=[pattern]) for name, pattern in KINDS.items()}
    configs |= {f"layer {i} in FP32": quantize.Config(exclude=[f"*layer.{i}/*"]) for i in range(layers)}
    return {"FP32": fp32} | {name: quantize.apply(fp32, config, samples) for name, config in configs.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Says what each layer's INT8 costs of a task's metric.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--dataset", type=Path, help="labelled data (default: the gate's)")
    options = parser.parse_args()
    recipe = recipes.load(options.recipe)
    workload = Workload.load(recipe, Progress())
    task, checkpoint = recipe.task, workload.checkpoint
    model = load_model(checkpoint, task.module.AUTO_CLASS, attention=export.ATTENTION)
    head, signature = task.module.head(model, checkpoint, task.config)
    fp32 = fuse.apply(export.export(head, signature), fuse.Config(), [])
    variants = graphs(workload, fp32, model.config.num_hidden_layers)
    if options.dataset:  # the model is calibrated as the recipe says, and only then asked another set
        gate = recipe.gate.model_copy(update={"dataset": str(options.dataset.resolve())})
        workload = replace(workload, data=task.module.load_data(replace(recipe, gate=gate)))
    rows = []
    for name, graph in variants.items():
        metrics = workload.metrics(workload.answers(session_infer(graph.SerializeToString())))
        rows.append([name, *(f"{value:.4f}" for value in metrics.values())])
    print(render(["", *metrics], rows))


if __name__ == "__main__":
    main()
