"""What NNCF's tests quantise, and what they hold it to."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from tiny_encoders import make, pairs, signature
from tritonpress_generator import export
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.graph import GraphMaterial, nncf
from tritonpress_generator.infer import Array
from tritonpress_generator.onnx_graph import (
    GraphEditor,
)


def trained_like(family: str = "bert") -> torch.nn.Module:
    """Returns an encoder whose biases are not 0, as training makes them; NNCF corrects no other."""
    model = make(family, export.ATTENTION, "span")
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.1)
    return model


MODEL = trained_like()
GIVES = signature(MODEL)
FP32 = export.export(MODEL, GIVES)
SAMPLES = [pairs([1 + i % 50], seed=i) for i in range(16)]
FEED = pairs([3, 17, 1, 30], seed=99)
BOUND = 0.01
"""Of scores up to 1.7."""


def quantized(material: GraphMaterial | None = None, **config: object) -> onnx.ModelProto:
    return nncf.apply(FP32, nncf.Config(**config), SAMPLES, material or GraphMaterial())  # type: ignore[arg-type]


def worst(graph: onnx.ModelProto, model: onnx.ModelProto = FP32, sample: dict[str, Array] = FEED) -> float:
    expected, got = (session_infer(graph.SerializeToString())(sample) for graph in (model, graph))
    return max(float(np.abs((got[n] - answer) * sample["attention_mask"]).max()) for n, answer in expected.items())


def in_fp32(graph: onnx.ModelProto) -> list[str]:
    """Returns the names of the encoder's products that read no pair."""
    editor = GraphEditor(graph)
    names = [node.name for node in graph.graph.node if node.op_type == "MatMul" and "layer." in node.name]
    makers = {node.name: editor.producer.get(node.input[0]) for node in graph.graph.node}
    return [name for name in names if (maker := makers[name]) is None or maker.op_type != "DequantizeLinear"]


class Metric:
    """Of a graph, and how often it was asked: 1, less `weight` times what its answers are off by."""

    def __init__(self, weight: float = 100) -> None:
        self.asked, self._weight = 0, weight

    def __call__(self, graph: onnx.ModelProto) -> float:
        self.asked += 1
        return 1 - self._weight * worst(graph)
