"""Compares ways to choose the activations' INT8 scales; prints the table of docs/measurements.md.

    HF_HUB_OFFLINE=1 .venv/bin/python docs/int8_schemes.py

fixed: what `graph: [fuse, quantize]` builds, with weights of 7 bits and of 8. by row: a scale for each token, taken at
run time by plain operators. dynamic: ONNX Runtime's `quantize_dynamic`, a scale for the whole batch; and the same with
one sequence a run.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from tritonpress_generator import export
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import alone, columns
from tritonpress_generator.bench.engine import SHAPES, feeds, sequence_rates
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.graph import fuse, quantize
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.onnx_graph import GraphEditor
from tritonpress_generator.pretrained import load_model
from tritonpress_generator.progress import Progress
from tritonpress_generator.quantization import quantize_symmetric
from tritonpress_generator.steps.single.pipeline import Pipeline
from tritonpress_generator.steps.tokenizer.sequences import Batching, Sequences
from tritonpress_generator.table import render
from tritonpress_generator.workload import Workload

RECIPE = Path(__file__).parents[1] / "generator" / "recipes" / "recommendation.yaml"
BATCH = 8
TORCH = "torch FP32"


def by_row(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns `model` with every row divided by its largest magnitude before a fixed grid, and multiplied after."""
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    editor = GraphEditor(quantized)
    scale = editor.add_constant("row/scale", np.array(1 / 127, np.float32))
    zero_point = editor.add_constant("row/zero_point", np.array(128, np.uint8))
    smallest = editor.add_constant("row/smallest", np.array(1e-8, np.float32))
    for node in list(quantized.graph.node):
        weight = editor.constant(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None:
            continue
        name, source = node.name, node.input[0]
        codes, scales = quantize_symmetric(weight, axis=1)
        inputs = [f"{name}/codes", editor.add_constant(f"{name}/weight", codes), scale]
        inputs += [editor.add_constant(f"{name}/scales", scales), zero_point]
        make = helper.make_node
        nodes = [
            make("Abs", [source], [f"{name}/abs"]),
            make("ReduceMax", [f"{name}/abs"], [f"{name}/max"], axes=[-1], keepdims=1),
            make("Max", [f"{name}/max", smallest], [f"{name}/row"]),
            make("Div", [source, f"{name}/row"], [f"{name}/unit"]),
            make("QuantizeLinear", [f"{name}/unit", scale, zero_point], [f"{name}/codes"]),
            make("MatMulIntegerToFloat", inputs, [f"{name}/product"], domain="com.microsoft"),
            make("Mul", [f"{name}/product", f"{name}/row"], [node.output[0]]),
        ]
        editor.replace(node, nodes)
        editor.refresh()
    editor.use_opset("com.microsoft", 1)
    editor.remove_unused()
    return quantized


def one_a_run(infer: Infer) -> Infer:
    """Returns `infer` run for each sequence of a batch at its exact length."""

    def alone(feed: Mapping[str, Array]) -> dict[str, Array]:
        lengths = feed["attention_mask"].sum(axis=1)
        rows = [{name: t[i : i + 1, :length] for name, t in feed.items()} for i, length in enumerate(lengths)]
        return {"embedding": np.concatenate([infer(row)["embedding"] for row in rows])}

    return alone


def shuffled_batches(sequences: Sequences) -> Iterator[tuple[list[int], dict[str, Array]]]:
    """Yields padded executions of eight sequences of mixed lengths."""
    order = random.Random(0).sample(range(len(sequences)), len(sequences))
    for start in range(0, len(order), BATCH):
        members = order[start : start + BATCH]
        yield members, Batching(pad_id=0).pad(sequences.chosen(members))


def compared(workload: Workload, rounds: int, slice_s: float) -> list[list[str]]:
    """Returns a row of the table for each scheme."""
    ways = schemes(workload)
    rates = sequence_rates(ways, feeds(workload.source().calibration, SHAPES), rounds, slice_s)
    texts = columns(workload.data.inputs)
    sequences = workload.encoder.encode(*texts.values())
    lengths = sequences.pieces()["lengths"]
    arrays = {name: np.array(column, np.object_) for name, column in texts.items()}
    rows = []
    reference = None
    for name, infer in ways.items():
        pipeline = Pipeline(alone, partial(map, infer), workload.postprocessor)
        answers = pipeline(sequences, arrays)
        batched = Pipeline(shuffled_batches, partial(map, infer), workload.postprocessor)(sequences, arrays)
        same = (answers["ITEM_ID"] == batched["ITEM_ID"]).all(axis=1)
        embeddings = pipeline.outputs(sequences, lengths)["embedding"]
        reference = embeddings if reference is None else reference
        cosine = (embeddings * reference).sum(axis=1).mean()
        ratios = [np.median(np.divide(*pair)) for pair in zip(rates[name], rates[TORCH], strict=True)]
        accuracy = workload.metrics(answers)["ndcg@10"]
        rows.append([name, *(f"{r:.2f}×" for r in ratios), f"{cosine:.4f}", f"{accuracy:.4f}", f"{same.mean():.1%}"])
    return rows


def schemes(workload: Workload) -> dict[str, Infer]:
    """Returns torch, and the model in INT8 by each scheme; all take a padded batch."""
    recipe, checkpoint = workload.recipe, workload.checkpoint
    task = recipe.task
    model = load_model(checkpoint, task.module.AUTO_CLASS, attention=export.ATTENTION)
    head, signature = task.module.head(model, checkpoint, task.config)
    fp32 = fuse.apply(export.export(head, signature), fuse.Config(), [])
    samples = [feed for _, feed in alone(workload.source().calibration)]
    by_channel, by_tensor = (dynamic(fp32, per_channel=per_channel) for per_channel in (True, False))
    return {
        TORCH: workload.baseline,
        "fixed": session_infer(quantize.apply(fp32, quantize.Config(), samples).SerializeToString()),
        "fixed, 8 bits": session_infer(
            quantize.apply(fp32, quantize.Config(reduce_range=False), samples).SerializeToString()
        ),
        "by row": session_infer(by_row(fp32).SerializeToString()),
        "dynamic, whole batch": by_channel,
        "dynamic, one a run": one_a_run(by_channel),
        "dynamic, weights by tensor": by_tensor,
    }


def dynamic(fp32: onnx.ModelProto, *, per_channel: bool) -> Infer:
    """Returns the model by ONNX Runtime's dynamic quantisation: scales of activations are of what an execution has."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "fp32.onnx", Path(folder) / "dynamic.onnx"
        onnx.save(fp32, before)
        settings = {"weight_type": QuantType.QInt8, "op_types_to_quantize": ["MatMul", "Gather"]}
        options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
        quantize_dynamic(before, after, per_channel=per_channel, **settings, extra_options=options)
        return session_infer(after)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Compares ways to choose the activations' INT8 scales.")
    parser.add_argument("--rounds", type=int, default=10, help="how often each slice is repeated (default: 10)")
    parser.add_argument("--slice-s", type=float, default=0.25, help="length of a slice in s (default: 0.25)")
    options = parser.parse_args()
    workload = Workload.load(recipes.load(RECIPE), Progress())
    rows = compared(workload, options.rounds, options.slice_s)
    shapes = [f"{batch}×{length}" for batch, length in SHAPES]
    print(render(["scales", *shapes, "cosine to FP32", "ndcg@10", "same order in mixed batches"], rows))


if __name__ == "__main__":
    main()
