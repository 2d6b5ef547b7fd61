"""Graph passes that cannot work together, or for the recipe's engine, are refused when the recipe is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_sources import write_recipe
from tritonpress_generator.errors import InputError
from tritonpress_generator.recipe import load

NBITS: Any = {"weight_only": {"bits": 4}}
FIXED, WIDE = ({"fixed_point": {"bits": bits}} for bits in (8, 16))
FP8 = {"qdq": {"precision": "fp8"}}
SOME = {"quantize": {"exclude": ["*layer.0/*"]}}
HELD = {"quantize": {"keep": 0.99}}
ON_TENSORRT = {"onnxruntime_gpu": {"provider": "tensorrt"}}
IN_INT8 = {"onnxruntime_gpu": {"provider": "tensorrt", "precision": "int8"}}
IN_FP32 = {"onnxruntime_gpu": {"precision": "fp32"}}


def loaded(folder: Path, graph: list[Any], engine: object, **changes: object) -> int:
    """Returns how many graph passes the recipe has that was read."""
    return len(load(write_recipe(folder, graph=graph, engine=engine, serve={"max_length": 48}, **changes)).graph)


@pytest.mark.parametrize(
    ("graph", "engine", "message"),
    [
        (
            ["fuse", "qdq"],
            "tensorrt",
            "graph[1]: qdq must not come behind fuse (graph[0]): it wants the graph as it is exported, in ONNX's "
            "operators alone and not quantised yet; leave fuse out",
        ),
        (["fuse", "nncf"], "openvino", "graph[1]: nncf must not come behind fuse (graph[0]): it wants"),
        (["qdq", "nncf"], "openvino", "graph[1]: nncf must not come behind qdq (graph[0]): it wants"),
        (["nncf", "nncf"], "openvino", "in ONNX's operators alone and not quantised yet; name it once"),
        ([FIXED, "qdq"], "onnxruntime_edge", "graph[1]: qdq must not come behind fixed_point (graph[0])"),
        (
            ["fuse", "quantize", NBITS],
            "onnxruntime",
            "graph[2]: weight_only must not come behind quantize (graph[1]): no product is left in FP32; quantise "
            "once, or name in exclude what quantize is to leave",
        ),
        ([NBITS, "fuse", "quantize"], "onnxruntime", "graph[2]: quantize must not come behind weight_only (graph[0])"),
        ([WIDE, "quantize"], "onnxruntime_edge", "graph[1]: quantize must not come behind fixed_point (graph[0])"),
        (
            ["qdq"],
            "onnxruntime",
            "graph: the engine onnxruntime cannot take it: activations must be unsigned bytes, since products of "
            "signed ones take longer than FP32's, qdq makes signed ones; use quantize for INT8 in place of nncf or qdq",
        ),
        (["nncf"], "onnxruntime", "nncf makes signed ones; use quantize for INT8"),
        (
            ["quantize"],
            "openvino",
            "graph: the engine openvino cannot take it: OpenVINO has none of ONNX Runtime's own operators that "
            "quantize makes; leave quantize out, and use nncf or qdq for INT8",
        ),
        (["fuse"], "openvino", "leave fuse out"),
        ([WIDE], "openvino", "leave fixed_point out"),
        (
            [NBITS],
            "tensorrt",
            "graph: the engine tensorrt cannot take it: TensorRT has none of ONNX Runtime's own operators that "
            "weight_only makes; leave fuse, quantize and weight_only out of `graph`, and use qdq for INT8",
        ),
        (["nncf"], "tensorrt", "nncf makes codes of them; use qdq in place of nncf"),
        ([FIXED], "tensorrt", "fixed_point makes codes of them; use qdq in place of fixed_point"),
        ([WIDE], "onnxruntime_gpu", "what fixed_point makes computes in FP32; leave"),
        ([NBITS], "onnxruntime_gpu", "what weight_only makes computes in FP32; leave fuse and weight_only out"),
        ([NBITS], ON_TENSORRT, "weight_only makes; leave fuse and weight_only out of `graph`, or take provider cuda"),
        (["nncf"], ON_TENSORRT, "TensorRT wants weights in FP32 in front of pairs; use qdq, not nncf"),
        ([FIXED], IN_INT8, "TensorRT wants weights in FP32 in front of pairs; use qdq, not fixed_point"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(
    tmp_path: Path, graph: list[Any], engine: object, message: str
) -> None:
    with pytest.raises(InputError) as raised:
        loaded(tmp_path, graph, engine)
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path / 'recipe.yaml'}: graph")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("graph", "engine"),
    [
        (["fuse", SOME, NBITS], "onnxruntime"),
        # What a metric leaves is known when it was asked.
        (["fuse", HELD, NBITS], "onnxruntime"),
        (["quantize", "fuse"], "onnxruntime"),
        (["fuse", FIXED], "onnxruntime"),
        ([FP8], "onnxruntime"),
        (["nncf", NBITS], "openvino"),
        ([FIXED], "openvino"),
        (["qdq"], "onnxruntime_edge"),
        ([FP8], "tensorrt"),
        (["fuse", NBITS], IN_FP32),
        (["nncf"], "onnxruntime_gpu"),
        (["qdq"], IN_INT8),
    ],
)
def test_what_may_work_is_taken(tmp_path: Path, graph: list[Any], engine: object) -> None:
    assert loaded(tmp_path, graph, engine) == len(graph)


def test_a_searchs_precisions_are_held_to_it_too(tmp_path: Path) -> None:
    for precisions, message in (
        ([["fuse"], ["fuse", "quantize", "quantize"]], "search.space.precisions[1][2]: quantize must not come behind"),
        ([["qdq"]], "search.space.precisions[0]: the engine onnxruntime cannot take it"),
    ):
        with pytest.raises(InputError) as raised:
            loaded(tmp_path, ["fuse"], "onnxruntime", search={"space": {"precisions": precisions}})
        assert message in str(raised.value)
