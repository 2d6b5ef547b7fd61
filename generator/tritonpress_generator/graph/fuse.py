"""Fuses attention into ONNX Runtime's kernel, and merges what reads the same input.

What it does, and why (measured on a CPU with AVX512-VNNI, ONNX Runtime 1.32, MiniLM-L6):

- Attention becomes `com.microsoft.MultiHeadAttention`, whose flash kernel (no mask) does without the transposed copies
  (`fused_attention`).
- The products for query, key and value, which read the same tensor, become one.
- The residual's Add in front of a LayerNormalization becomes Sum, which computes the same: ONNX Runtime fuses Add and
  LayerNormalization into SkipLayerNormalization, whose kernel takes several times as long as the two do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tritonpress_generator import fused_attention
from tritonpress_generator.graph import NO_MATERIAL, GraphMaterial
from tritonpress_generator.infer import Array
from tritonpress_generator.onnx_graph import DOMAIN, GraphEditor
from tritonpress_generator.recipe_text import Settings

READS = "any"


class Config(Settings):
    """Has no settings."""


def apply(
    model: onnx.ModelProto, config: Config, samples: Sequence[dict[str, Array]], material: GraphMaterial = NO_MATERIAL
) -> onnx.ModelProto:
    """Returns `model` with its attention fused; where an encoder's attention looks otherwise, it stays plain."""
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    editor = GraphEditor(fused)
    for name, (kernel, add_shared) in fused_attention.FORMS.items():
        of_form = {name, f"Biased{name}"}
        attentions = [node for node in fused.graph.node if node.domain == DOMAIN and node.op_type in of_form]
        for attention in attentions:
            _fuse_attention(editor, attention, kernel)
        if attentions:
            add_shared(editor, attentions[0].input[3])
    for node in fused.graph.node:
        if node.op_type == "Add" and editor.constant(node.input[0]) is None and editor.constant(node.input[1]) is None:
            readers = editor.consumers.get(node.output[0], [])
            if any(reader.op_type == "LayerNormalization" for reader in readers):
                node.op_type = "Sum"
    editor.use_opset(fused_attention.DOMAIN, 1)
    editor.remove_unused()
    return fused


def _fuse_attention(editor: GraphEditor, attention: onnx.NodeProto, kernel: fused_attention.Kernel) -> None:
    """Replaces one attention and the reshapes around it."""
    reshape = editor.only_consumer(attention.output[0], "Reshape")
    if reshape is None:
        return
    merging: list[onnx.NodeProto] = []
    names: list[str] = []
    for name in attention.input[:3]:
        before = _before_heads(editor, name)
        if before is None:
            # Rotary positions turn the heads of query and key: they are put back into a row.
            nodes, before = fused_attention.merge_heads(name, f"{attention.output[0]}/{len(names)}")
            merging += nodes
        names.append(before)
    _merge_projections(editor, names, prefix=attention.name)
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in attention.attribute}
    heads_and_scale = {key: settings[key] for key in ("num_heads", "scale")}
    bias = attention.input[-1] if attention.op_type.startswith("Biased") else None
    editor.replace(reshape, [*merging, kernel(names, reshape.output[0], heads_and_scale, bias)])
    editor.refresh()


def _before_heads(editor: GraphEditor, name: str) -> str | None:
    """Returns the `(batch, seq, heads * head_size)` tensor that `name` splits into `(batch, heads, seq, head_size)`."""
    transpose = editor.producer.get(name)
    if transpose is None or transpose.op_type != "Transpose" or list(transpose.attribute[0].ints) != [0, 2, 1, 3]:
        return None
    reshape = editor.producer.get(transpose.input[0])
    return reshape.input[0] if reshape is not None and reshape.op_type == "Reshape" else None


def _merge_projections(editor: GraphEditor, names: list[str], *, prefix: str) -> None:
    """Makes one product of the linear layers whose answers are `names`, if they read the same tensor."""
    layers = [_linear(editor, name) for name in names]
    found = [layer for layer in layers if layer is not None]
    if len(found) != len(names) or len({source for source, _, _ in found}) != 1:
        return
    weight = editor.add_constant(f"{prefix}/qkv_weight", np.concatenate([weight for _, weight, _ in found], axis=1))
    bias = editor.add_constant(f"{prefix}/qkv_bias", np.concatenate([bias for _, _, bias in found]))
    sizes = editor.add_constant(f"{prefix}/qkv_sizes", np.array([bias.size for _, _, bias in found], np.int64))
    merged = [
        helper.make_node("MatMul", [found[0][0], weight], [f"{prefix}/qkv_product"], name=f"{prefix}/qkv_MatMul"),
        helper.make_node("Add", [f"{prefix}/qkv_product", bias], [f"{prefix}/qkv"], name=f"{prefix}/qkv_Add"),
        helper.make_node("Split", [f"{prefix}/qkv", sizes], names, name=f"{prefix}/qkv_Split", axis=-1),
    ]
    nodes = editor.model.graph.node
    first = min(i for i, node in enumerate(nodes) if node.output[0] in names)
    for name in names:
        node = editor.producer[name]
        nodes.remove(node)
    for offset, node in enumerate(merged):
        nodes.insert(first + offset, node)
    editor.refresh()


def _linear(editor: GraphEditor, name: str) -> tuple[str, Any, Any] | None:
    """Returns (input, weight, bias) of the linear layer that gives `name`, or None."""
    add = editor.producer.get(name)
    if add is None or add.op_type != "Add":
        return None
    for product, bias in (add.input, reversed(list(add.input))):
        matmul = editor.producer.get(product)
        if matmul is None or matmul.op_type != "MatMul":
            continue
        weight, vector = editor.constant(matmul.input[1]), editor.constant(bias)
        if weight is not None and vector is not None and weight.ndim == 2 and vector.ndim == 1:
            return matmul.input[0], weight, vector
    return None
