"""Models for everything that `batch_input`, `batch_output` and `allow_ragged_batch` can do."""

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from tiny_models import FP32, INT64, full_batches, graph, write_model

INT8, INT32 = TensorProto.INT8, TensorProto.INT32
KINDS = {
    "count": ("BATCH_ELEMENT_COUNT", "INT32"),
    "ends": ("BATCH_ACCUMULATED_ELEMENT_COUNT", "FP32"),
    "bounds": ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", "INT32"),
    "longest": ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", "FP32"),
    "item": ("BATCH_ITEM_SHAPE", "INT32"),
    "items": ("BATCH_ITEM_SHAPE_FLATTEN", "FP32"),
}
"""The batch inputs of the model `counts`, with their kinds and types."""


def ragged(name: str, data_type: str = "TYPE_FP32", *, dims: int = 1) -> dict[str, Any]:
    """A ragged input of the config."""
    return {"name": name, "data_type": data_type, "dims": [-1] * dims, "allow_ragged_batch": True}


def scattered(name: str, source: str) -> dict[str, Any]:
    """A batch output."""
    return {"target_name": [name], "kind": "BATCH_SCATTER_WITH_INPUT_SHAPE", "source_input": [source]}


def write_ragged_models(repository: Path) -> None:
    """Writes the models `counts`, `scatter`, `cut`, `few_rows` and `alone`.

    `counts_together`, `scatter_together`, `cut_together`, `few_rows_together` and `ragged_lookup` do the same to
    requests that fill a batch.
    """
    for suffix, batching in {"": {}, "_together": full_batches(8)}.items():
        _write_counts(repository, f"counts{suffix}", batching)
        _write_scatter(repository, f"scatter{suffix}", batching)
    _write_cut(repository)
    few_rows = graph(
        [helper.make_node("Slice", ["x", "zero", "two"], ["y"])],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["some", 4])},
        {"zero": np.array([0]), "two": np.array([2])},
    )
    write_model(repository, "few_rows", few_rows)
    write_model(repository, "few_rows_together", few_rows, **full_batches(4))
    lookup = graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        {"x": (INT64, ["total"])},
        {"y": (FP32, ["total"])},
        {"table": np.arange(10, dtype=np.float32)},
    )
    for name, batching in ({"ragged_lookup": full_batches(3), "alone": {}}).items():
        write_model(
            repository,
            name,
            lookup,
            input=[ragged("x", "TYPE_INT64")],
            output=[{"name": "y", "data_type": "TYPE_FP32", "dims": [-1]}],
            batch_output=[scattered("y", "x")],
            **batching,
        )


def _write_counts(repository: Path, model: str, batching: dict[str, Any]) -> None:
    """Each request gets every batch input whole, repeated for its rows; `item` it gets its own rows of."""
    nodes, outputs = [], {}
    for name in KINDS:
        if name == "item":
            nodes.append(helper.make_node("Cast", [name], ["item_out"], to=FP32))
        else:
            seen = "longest_shape" if name == "longest" else name
            nodes += [
                helper.make_node("Cast", [seen], [f"{name}_float"], to=FP32),
                helper.make_node("Unsqueeze", [f"{name}_float", "first"], [f"{name}_row"]),
                helper.make_node("Mul", ["ones", f"{name}_row"], [f"{name}_out"]),
            ]
        outputs[f"{name}_out"] = (FP32, ["batch", 1 if name == "longest" else f"{name}_size"])
    shapes = {name: [f"{name}_length"] for name in KINDS} | {"item": ["rows", "item_size"]}
    write_model(
        repository,
        model,
        graph(
            [helper.make_node("Shape", ["longest"], ["longest_shape"]), *nodes],
            {"x": (FP32, ["total"]), "ones": (FP32, ["batch", 1])}
            | {name: ({"INT32": INT32, "FP32": FP32}[dtype], shapes[name]) for name, (_, dtype) in KINDS.items()},
            outputs,
            {"first": np.array([0])},
        ),
        input=[ragged("x", dims=2), {"name": "ones", "data_type": "TYPE_FP32", "dims": [1]}],
        output=[
            {"name": name, "data_type": "TYPE_FP32", "dims": [1 if name == "longest_out" else -1]} for name in outputs
        ],
        batch_input=[
            {"kind": kind, "target_name": [name], "data_type": f"TYPE_{dtype}", "source_input": ["x"]}
            for name, (kind, dtype) in KINDS.items()
        ],
        **batching,
    )


def _write_scatter(repository: Path, model: str, batching: dict[str, Any]) -> None:
    """Of `x` one value an element, `(total,)` and `(total, 1)`; of `lengths` a row each: one and ten times it."""
    outputs = {
        "token": (FP32, ["total"], [-1], "x"),
        "column": (FP32, ["total", 1], [-1, 1], "x"),
        "flat_column": (FP32, ["total", 1], [-1], "x"),
        "row": (FP32, ["sequences", 2], [-1, 2], "lengths"),
        "flat_row": (FP32, ["sequences", 2], [-1], "row_elements"),
    }
    write_model(
        repository,
        model,
        graph(
            [
                helper.make_node("Add", ["x", "one"], ["token"]),
                helper.make_node("Unsqueeze", ["token", "last"], ["column"]),
                helper.make_node("Identity", ["column"], ["flat_column"]),
                helper.make_node("Cast", ["lengths"], ["lengths_float"], to=FP32),
                helper.make_node("Unsqueeze", ["lengths_float", "last"], ["lengths_column"]),
                helper.make_node("Mul", ["lengths_column", "one_ten"], ["row"]),
                helper.make_node("Identity", ["row"], ["flat_row"]),
            ],
            {"x": (FP32, ["total"]), "lengths": (INT64, ["sequences"]), "row_elements": (INT8, ["elements"])},
            {name: (dtype, shape) for name, (dtype, shape, _, _) in outputs.items()},
            {
                "one": np.array(1, np.float32),
                "last": np.array([1]),
                "one_ten": np.array([[1, 10]], np.float32),
            },
        ),
        input=[ragged("x"), ragged("lengths", "TYPE_INT64"), ragged("row_elements", "TYPE_INT8")],
        output=[{"name": name, "data_type": "TYPE_FP32", "dims": dims} for name, (_, _, dims, _) in outputs.items()],
        batch_output=[scattered(name, source) for name, (_, _, _, source) in outputs.items()],
        **batching,
    )


def _write_cut(repository: Path) -> None:
    """`head` is the first five elements of an execution's `x`, `twice` all of them and once more."""
    outputs = [{"name": name, "data_type": "TYPE_FP32", "dims": [-1]} for name in ("head", "twice")]
    cut = graph(
        [
            helper.make_node("Slice", ["x", "zero", "five"], ["head"]),
            helper.make_node("Concat", ["x", "x"], ["twice"], axis=0),
        ],
        {"x": (FP32, ["total"])},
        {"head": (FP32, ["some"]), "twice": (FP32, ["more"])},
        {"zero": np.array([0]), "five": np.array([5])},
    )
    for name, batching in ({"cut": {}, "cut_together": full_batches(2)}).items():
        write_model(
            repository,
            name,
            cut,
            input=[ragged("x")],
            output=outputs,
            batch_output=[scattered("head", "x"), scattered("twice", "x")],
            **batching,
        )
