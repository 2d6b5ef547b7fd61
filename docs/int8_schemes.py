"""Compares ways to choose the activations' INT8 scales; prints the table of docs/measurements.md.

    HF_HUB_OFFLINE=1 .venv/bin/python docs/int8_schemes.py

fixed: what `graph: [fuse, quantize]` builds. by row: a scale for each token, taken at run time by plain operators.
dynamic: ONNX Runtime's `quantize_dynamic`, a scale for the whole batch; and the same with one sequence a run.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from tritonpress_generator import export
from tritonpress_generator import recipe as recipes
from tritonpress_generator.build import text_encoder
from tritonpress_generator.checkpoint import load_encoder, load_tokenizer, resolve
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.graph import fuse, quantize
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.onnx_graph import GraphEditor
from tritonpress_generator.quantization import quantize_int8_symmetric
from tritonpress_generator.signature import INPUTS
from tritonpress_generator.table import render
from tritonpress_generator.tasks import recommendation as task

RECIPE = Path(__file__).parents[1] / "generator" / "recipes" / "recommendation.yaml"
SHAPES = ((1, 32), (8, 128), (1, 384))
ROUNDS = 10
SLICE_S = 0.25


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
        codes, scales = quantize_int8_symmetric(weight, axis=1)
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


def main() -> None:
    """Prints the table."""
    recipe = recipes.load(RECIPE)
    data = task.load_data(recipe)
    checkpoint = resolve(recipe.checkpoint, base=RECIPE.parent)
    encoder = text_encoder(recipe, load_tokenizer(checkpoint), max_bytes=1 << 20)
    model, signature = task.head(load_encoder(checkpoint), checkpoint, recipe.task.config)
    torch_infer = export.torch_infer(model, signature)
    exported, _ = task.head(load_encoder(checkpoint, attention=export.ATTENTION), checkpoint, recipe.task.config)
    fp32 = fuse.apply(export.export(exported, signature), fuse.Config(), [])
    samples = list(task.feeds(encoder, data.texts[:256]))
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "fp32.onnx", Path(folder) / "dynamic.onnx"
        onnx.save(fp32, before)
        settings = {"per_channel": True, "weight_type": QuantType.QInt8, "op_types_to_quantize": ["MatMul", "Gather"]}
        quantize_dynamic(before, after, **settings, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
        dynamic = session_infer(after)
    ways: dict[str, Infer] = {
        "torch FP32": torch_infer,
        "fixed": session_infer(quantize.apply(fp32, quantize.Config(), samples).SerializeToString()),
        "by row": session_infer(by_row(fp32).SerializeToString()),
        "dynamic, whole batch": dynamic,
        "dynamic, one a run": one_a_run(dynamic),
    }
    rates: dict[str, list[list[float]]] = {name: [] for name in ways}
    for shape in SHAPES:
        ids = np.random.default_rng(0).integers(1000, 20000, shape)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        measured: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(ROUNDS + 1):
            for name, infer in ways.items():
                rate = _rate(infer, feed)
                if turn:
                    measured[name].append(rate)
        for name in ways:
            rates[name].append(measured[name])
    catalogue = task.index(torch_infer, encoder, data, recipe.task.config)
    queries = [query.query for query in data.queries]
    reference = task.embed(torch_infer, encoder, queries, label="reference", batch=1)
    order = random.Random(0).sample(range(len(queries)), len(queries))
    rows = []
    for name, infer in ways.items():
        alone = task.embed(infer, encoder, queries, label=name, batch=1)
        together = np.empty_like(alone)
        for start in range(0, len(order), 8):
            chunk = order[start : start + 8]
            tokens = encoder.encode([queries[i].encode() for i in chunk])
            together[chunk] = infer(dict(zip(INPUTS, encoder.pad(tokens), strict=True)))["embedding"]
        same = [
            np.array_equal(catalogue.rank(alone[i], text)[0], catalogue.rank(together[i], text)[0])
            for i, text in enumerate(queries)
        ]
        metrics = task.evaluate(infer, encoder, data, catalogue).metrics
        ratios = [np.median(np.divide(rates[name][i], rates["torch FP32"][i])) for i in range(len(SHAPES))]
        cosine = (alone * reference).sum(axis=1).mean()
        cells = [*(f"{ratio:.2f}×" for ratio in ratios), f"{cosine:.4f}", f"{metrics['ndcg@10']:.4f}"]
        rows.append([name, *cells, f"{np.mean(same):.1%}"])
    header = ["scales", *(f"{b}×{s}" for b, s in SHAPES), "cosine to FP32", "ndcg@10", "same order in mixed batches"]
    print(render(header, rows))


def _rate(infer: Infer, feed: Mapping[str, Array]) -> float:
    start = time.perf_counter()
    count = 0
    while time.perf_counter() - start < SLICE_S:
        infer(feed)
        count += 1
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
