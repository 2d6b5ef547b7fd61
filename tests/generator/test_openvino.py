"""The plain graphs answer in another runtime, OpenVINO, as torch does: their operators are ONNX's own."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx.inliner
import openvino
import pytest
from tiny_encoders import make, pairs, signature
from tritonpress_generator import export, ragged, signal_stack
from tritonpress_generator.infer import Array, Infer

FEEDS = [pairs(lengths) for lengths in ([1], [2], [64], [5, 5], [3, 17, 1, 30], [60] * 10)]


def openvino_infer(model: onnx.ModelProto) -> Infer:
    core = openvino.Core()
    plain = onnx.inliner.inline_local_functions(model)
    # The CPU plugin computes in BF16 where the processor can, unless it is told not to.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    with signal_stack.kept():
        compiled = core.compile_model(core.read_model(plain.SerializeToString()), "CPU", settings)
    names = [tensor.name for tensor in model.graph.input]
    outputs = [tensor.name for tensor in model.graph.output]

    def infer(feed: Mapping[str, Array]) -> dict[str, Array]:
        answer = compiled({name: feed[name] for name in names})
        return {name: answer[name] for name in outputs}

    return infer


@pytest.mark.parametrize(("family", "head"), [("bert", "mean"), ("bert", "all"), ("roberta", "cls"), ("mpnet", "mean")])
def test_ragged_and_padded_forms_answer_as_torch(family: str, head: str) -> None:
    reference = make(family, "own", head)
    gives = signature(reference)
    torch_infer = export.torch_infer(reference, gives)
    padded = openvino_infer(export.export(make(family, export.ATTENTION, head), gives))
    export.check_parity(torch_infer, padded, FEEDS, gives)
    packed = ragged.as_padded(openvino_infer(ragged.export(make(family, ragged.ATTENTION, head), gives)), gives)
    export.check_parity(torch_infer, packed, FEEDS, gives)
