"""Fuses attention into ONNX Runtime's kernel, and merges what reads the same input.

What it does, and why (measured on a CPU with AVX512-VNNI, ONNX Runtime 1.32, MiniLM-L6):

- Attention becomes `com.microsoft.MultiHeadAttention`, whose flash kernel (no mask) does without the transposed copies.
  A batch without padding takes it at once; a batch with padding takes the same kernel sequence by sequence at its exact
  length, so that a sequence's answer is the same to the last bit whatever it is batched with. In the ragged form each
  sequence is cut out of the packed tokens, and nothing is padded; the answers go through an ONNX sequence, which copies
  them once (16 sequences, log-normal lengths, MiniLM-L6 FP32: 398/s; carried by Concat 391, padded and gathered 375,
  plain operators 262).
- The products for query, key and value, which read the same tensor, become one.
- The residual's Add in front of a LayerNormalization becomes Sum, which computes the same: ONNX Runtime fuses Add and
  LayerNormalization into SkipLayerNormalization, whose kernel takes several times as long as the two do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tritonpress_generator.export import DOMAIN
from tritonpress_generator.infer import Array
from tritonpress_generator.onnx_graph import GraphEditor
from tritonpress_generator.recipe import Settings

_CONTRIB = "com.microsoft"


class Config(Settings):
    """Has no settings."""


def apply(model: onnx.ModelProto, config: Config, samples: Sequence[dict[str, Array]]) -> onnx.ModelProto:
    """Returns `model` with its attention fused; where an encoder's attention looks otherwise, it stays plain."""
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    editor = GraphEditor(fused)
    for op_type, (kernel, add_shared) in _FORMS.items():
        attentions = [node for node in fused.graph.node if node.domain == DOMAIN and node.op_type == op_type]
        for attention in attentions:
            _fuse_attention(editor, attention, kernel)
        if attentions:
            add_shared(editor, attentions[0].input[3])
    for node in fused.graph.node:
        if node.op_type == "Add" and editor.constant(node.input[0]) is None and editor.constant(node.input[1]) is None:
            readers = editor.consumers.get(node.output[0], [])
            if any(reader.op_type == "LayerNormalization" for reader in readers):
                node.op_type = "Sum"
    editor.use_opset(_CONTRIB, 1)
    editor.remove_unused()
    return fused


def _fuse_attention(editor: GraphEditor, attention: onnx.NodeProto, kernel: Callable[..., onnx.NodeProto]) -> None:
    """Replaces one attention and the reshapes around it, if they are those of a plain multi-head attention."""
    heads = [_before_heads(editor, name) for name in attention.input[:3]]
    reshape = editor.only_consumer(attention.output[0], "Reshape")
    if reshape is None or any(name is None for name in heads):
        return
    query, key, value = (str(name) for name in heads)
    _merge_projections(editor, [query, key, value], prefix=attention.name)
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in attention.attribute}
    names = (query, key, value)
    heads_and_scale = {key: settings[key] for key in ("num_heads", "scale")}
    editor.replace(reshape, [kernel(names, reshape.output[0], heads_and_scale)])
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


def _kernel(inputs: Sequence[str], answer: str, settings: dict[str, Any]) -> onnx.NodeProto:
    return helper.make_node("MultiHeadAttention", inputs, [answer], domain=_CONTRIB, **settings)


def _either(condition: str, names: Sequence[str], output: str, settings: dict[str, Any], other: Any) -> onnx.NodeProto:
    """Returns the If that is one call of the kernel where `condition` holds, and the graph `other` where not."""
    dense = helper.make_graph([_kernel(names, f"{output}/dense", settings)], "dense", [], [_float(f"{output}/dense")])
    return helper.make_node(
        "If", [condition], [output], name=f"{output}/attention", then_branch=dense, else_branch=other
    )


def _padded_attention(names: Sequence[str], output: str, settings: dict[str, Any]) -> onnx.NodeProto:
    """Returns the node that answers `output` `(batch, seq, width)` from the three tensors `names` of the same shape."""
    rows = [f"{output}/{part}_row" for part in ("query", "key", "value")]
    body = [helper.make_node("Identity", [f"{output}/go"], [f"{output}/go_on"])]
    body.append(helper.make_node("Gather", ["tritonpress/lengths", f"{output}/row"], [f"{output}/length"], axis=0))
    for tensor, row in zip(names, rows, strict=True):
        body.append(helper.make_node("Gather", [tensor, f"{output}/row"], [f"{row}_padded"], axis=0))
        body.append(
            helper.make_node("Slice", [f"{row}_padded", "tritonpress/zero", f"{output}/length"], [f"{row}_exact"])
        )
        body.append(helper.make_node("Unsqueeze", [f"{row}_exact", "tritonpress/zero"], [row]))
    body += [
        _kernel(rows, f"{output}/exact", settings),
        helper.make_node("Squeeze", [f"{output}/exact", "tritonpress/zero"], [f"{output}/exact_row"]),
        helper.make_node("Sub", ["tritonpress/seq", f"{output}/length"], [f"{output}/missing"]),
        helper.make_node(
            "Concat",
            ["tritonpress/zero", "tritonpress/zero", f"{output}/missing", "tritonpress/zero"],
            [f"{output}/pads"],
            axis=0,
        ),
        helper.make_node("Pad", [f"{output}/exact_row", f"{output}/pads"], [f"{output}/padded_row"]),
    ]
    loop_body = helper.make_graph(
        body,
        "one_sequence",
        [
            helper.make_tensor_value_info(f"{output}/row", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"{output}/go", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info(f"{output}/go_on", TensorProto.BOOL, []),
            _float(f"{output}/padded_row"),
        ],
    )
    loop = helper.make_node("Loop", ["tritonpress/batch", ""], [f"{output}/padded"], body=loop_body)
    padded = helper.make_graph([loop], "padded", [], [_float(f"{output}/padded")])
    return _either("tritonpress/dense", names, output, settings, padded)


def _ragged_attention(names: Sequence[str], output: str, settings: dict[str, Any]) -> onnx.NodeProto:
    """Returns the node that answers `output` `(1, tokens, width)` from the three tensors `names` of the same shape."""
    make = helper.make_node
    rows = [f"{output}/{part}_row" for part in ("query", "key", "value")]
    body = [
        make("Identity", [f"{output}/go"], [f"{output}/go_on"]),
        make("Gather", ["tritonpress/starts", f"{output}/row"], [f"{output}/start"], axis=0),
        make("Gather", ["tritonpress/ends", f"{output}/row"], [f"{output}/end"], axis=0),
    ]
    for tensor, row in zip(names, rows, strict=True):
        body.append(make("Slice", [tensor, f"{output}/start", f"{output}/end", "tritonpress/one"], [row]))
    body += [
        _kernel(rows, f"{output}/exact", settings),
        make("SequenceInsert", [f"{output}/before", f"{output}/exact"], [f"{output}/after"]),
    ]
    loop_body = helper.make_graph(
        body,
        "one_sequence",
        [
            helper.make_tensor_value_info(f"{output}/row", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"{output}/go", TensorProto.BOOL, []),
            helper.make_tensor_sequence_value_info(f"{output}/before", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info(f"{output}/go_on", TensorProto.BOOL, []),
            helper.make_tensor_sequence_value_info(f"{output}/after", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        make("SequenceEmpty", [], [f"{output}/none"], dtype=TensorProto.FLOAT),
        make("Loop", ["tritonpress/sequences", "", f"{output}/none"], [f"{output}/answers"], body=loop_body),
        make("ConcatFromSequence", [f"{output}/answers"], [f"{output}/packed"], axis=1),
    ]
    several = helper.make_graph(nodes, "several", [], [_float(f"{output}/packed")])
    return _either("tritonpress/alone", names, output, settings, several)


def _add_padded_shared(editor: GraphEditor, mask: str) -> None:
    """Adds, once, what every attention asks: is there padding, and how long is each sequence."""
    editor.add_constant("tritonpress/zero", np.array([0], np.int64))
    one = editor.add_constant("tritonpress/one", np.array([1], np.int64))
    scalar = editor.add_constant("tritonpress/scalar", np.array(0, np.int64))
    nodes = [
        helper.make_node("ReduceMin", [mask], ["tritonpress/smallest"], keepdims=0),
        helper.make_node("Cast", ["tritonpress/smallest"], ["tritonpress/dense"], to=TensorProto.BOOL),
        helper.make_node("ReduceSum", [mask, one], ["tritonpress/lengths"], keepdims=1),
        helper.make_node("Shape", [mask], ["tritonpress/shape"]),
        helper.make_node("Gather", ["tritonpress/shape", scalar], ["tritonpress/batch"], axis=0),
        helper.make_node("Gather", ["tritonpress/shape", one], ["tritonpress/seq"], axis=0),
    ]
    for offset, node in enumerate(nodes):
        editor.model.graph.node.insert(offset, node)
    editor.refresh()


def _add_ragged_shared(editor: GraphEditor, lengths: str) -> None:
    """Adds, once, what every attention asks: how many sequences are there, and where does each begin and end."""
    one = editor.add_constant("tritonpress/one", np.array([1], np.int64))
    axis = editor.add_constant("tritonpress/axis", np.array(0, np.int64))
    single = editor.add_constant("tritonpress/single", np.array(1, np.int64))
    make = helper.make_node
    nodes = [
        make("CumSum", [lengths, axis], ["tritonpress/end_of"]),
        make("Sub", ["tritonpress/end_of", lengths], ["tritonpress/start_of"]),
        make("Unsqueeze", ["tritonpress/start_of", one], ["tritonpress/starts"]),
        make("Unsqueeze", ["tritonpress/end_of", one], ["tritonpress/ends"]),
        make("Size", [lengths], ["tritonpress/sequences"]),
        make("Equal", ["tritonpress/sequences", single], ["tritonpress/alone"]),
    ]
    for offset, node in enumerate(nodes):
        editor.model.graph.node.insert(offset, node)
    editor.refresh()


_FORMS = {
    "Attention": (_padded_attention, _add_padded_shared),
    "RaggedAttention": (_ragged_attention, _add_ragged_shared),
}
"""The functions that the exports write; the fourth input of each, of which the shared nodes are made."""


def _float(name: str) -> onnx.ValueInfoProto:
    """Returns the declaration of an FP32 tensor of unstated shape."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
