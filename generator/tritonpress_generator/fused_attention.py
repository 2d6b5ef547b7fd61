"""Attention as ONNX Runtime's kernel, `com.microsoft.MultiHeadAttention`, in both forms of the export.

A padded batch without padding takes the kernel at once; one with padding takes it sequence by sequence at its exact
length, so that a sequence's answer is the same to the last bit whatever it is batched with. In the ragged form each
sequence is cut out of the packed tokens, and nothing is padded; the answers go through an ONNX sequence, which copies
them once (16 sequences, log-normal lengths, MiniLM-L6 FP32: 398/s; carried by Concat 391, padded and gathered 375,
plain operators 262). A bias of relative positions, which all sequences share, is cut to each one's length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tritonpress_generator.onnx_graph import GraphEditor

DOMAIN = "com.microsoft"
Kernel = Callable[[Sequence[str], str, dict[str, Any], str | None], onnx.NodeProto]
"""Gives the node that answers a name from the names of query, key and value, the kernel's settings and the bias."""


def merge_heads(name: str, prefix: str) -> tuple[list[onnx.NodeProto], str]:
    """Returns what makes `(batch, seq, width)` of `name`, `(batch, heads, seq, head_size)`, and the new name."""
    nodes = [
        helper.make_node("Transpose", [name], [f"{prefix}/by_token"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [f"{prefix}/by_token", "tritonpress/merged"], [f"{prefix}/merged"]),
    ]
    return nodes, f"{prefix}/merged"


def _kernel(inputs: Sequence[str], answer: str, settings: dict[str, Any], bias: str | None) -> onnx.NodeProto:
    all_inputs = inputs if bias is None else [*inputs, "", "", bias]
    return helper.make_node("MultiHeadAttention", all_inputs, [answer], domain=DOMAIN, **settings)


def _either(condition: str, dense: onnx.NodeProto, other: onnx.GraphProto) -> onnx.NodeProto:
    """Returns the If that is the one node `dense` where `condition` holds, and the graph `other` where not."""
    output = dense.output[0].removesuffix("/dense")
    dense_graph = helper.make_graph([dense], "dense", [], [_float(f"{output}/dense")])
    return helper.make_node(
        "If", [condition], [output], name=f"{output}/attention", then_branch=dense_graph, else_branch=other
    )


def _cut_bias(bias: str | None, length: str, output: str) -> tuple[list[onnx.NodeProto], str | None]:
    """Returns what cuts a bias `(1, heads, longest, longest)` to the `length`, INT64 `(1,)`, of one sequence."""
    if bias is None:
        return [], None
    ends, cut = f"{output}/bias_ends", f"{output}/bias"
    nodes = [
        helper.make_node("Concat", [length, length], [ends], axis=0),
        helper.make_node("Slice", [bias, "tritonpress/corner", ends, "tritonpress/square"], [cut]),
    ]
    return nodes, cut


def _padded_attention(names: Sequence[str], output: str, settings: dict[str, Any], bias: str | None) -> onnx.NodeProto:
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
    cutting, cut = _cut_bias(bias, f"{output}/length", output)
    body += [
        *cutting,
        _kernel(rows, f"{output}/exact", settings, cut),
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
    return _either("tritonpress/dense", _kernel(names, f"{output}/dense", settings, bias), padded)


def _ragged_attention(names: Sequence[str], output: str, settings: dict[str, Any], bias: str | None) -> onnx.NodeProto:
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
    cutting, cut = _cut_bias(bias, f"{output}/length", output)
    if bias is not None:
        body.append(make("Sub", [f"{output}/end", f"{output}/start"], [f"{output}/length"]))
    body += [
        *cutting,
        _kernel(rows, f"{output}/exact", settings, cut),
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
    return _either("tritonpress/alone", _kernel(names, f"{output}/dense", settings, bias), several)


def _add_padded_shared(editor: GraphEditor, mask: str) -> None:
    """Adds, once, what every attention asks: is there padding, and how long is each sequence."""
    _add_constants(editor)
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
    _add_constants(editor)
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


def _add_constants(editor: GraphEditor) -> None:
    """Adds the shape in which heads are merged, and where a bias is cut from, along which axes."""
    editor.add_constant("tritonpress/merged", np.array([0, 0, -1], np.int64))
    editor.add_constant("tritonpress/corner", np.array([0, 0], np.int64))
    editor.add_constant("tritonpress/square", np.array([2, 3], np.int64))


def _float(name: str) -> onnx.ValueInfoProto:
    """Returns the declaration of an FP32 tensor of unstated shape."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


FORMS: dict[str, tuple[Kernel, Callable[[GraphEditor, str], None]]] = {
    "Attention": (_padded_attention, _add_padded_shared),
    "RaggedAttention": (_ragged_attention, _add_ragged_shared),
}
"""The functions that the exports write; of the fourth input of each the shared nodes are made."""
