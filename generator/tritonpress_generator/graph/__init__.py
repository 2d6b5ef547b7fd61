"""One file a graph pass (ONNX to ONNX); the file's name is the word in the recipe's `graph:` list.

A pass's file has:

    Config                                          its settings in the recipe
    READS                                           what it must find, by which a recipe may be refused
                                                    (`graph_order.py`): the `export` as it is; `products` with constant
                                                    weights in FP32, of which it leaves those that its settings say; or
                                                    `any` graph
    apply(model, config, samples, material) -> model
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx

from tritonpress_generator.errors import InputError
from tritonpress_generator.kept import NOTHING, Kept

_NO_EXAMPLES = "graph: a pass that measures the task's metric needs labelled examples; add 'data' to the recipe"


def _unscored(model: onnx.ModelProto) -> float:
    raise InputError(_NO_EXAMPLES)


def _unknown() -> str:
    raise InputError(_NO_EXAMPLES)


def _unheard(report: dict[str, Any]) -> None:
    pass


@dataclass(frozen=True)
class GraphMaterial:
    """What a graph pass may use beside the texts it calibrates on."""

    kept: Kept = NOTHING
    """What earlier builds have computed."""
    score: Callable[[onnx.ModelProto], float] = _unscored
    """Gives the task's metric of a graph, in the recipe's engine, on the held-out examples of the recipe's `data`, not
    the gate's; higher is better. Raises InputError where there are none."""
    note: Callable[[dict[str, Any]], None] = _unheard
    """Takes what the pass has done, for the manifest."""
    held_out: Callable[[], str] = _unknown
    """Gives a hash of these examples and of all else that `score` depends on. Raises as `score`."""


NO_MATERIAL = GraphMaterial()
