"""Which parts of a graph stay unquantised, so that the task's metric holds.

Each part is first quantised alone, and the error of the graph's outputs on a few texts ranks it: that takes seconds a
part and no labels, where the metric takes minutes and says a part's cost only within its own noise. Then the metric on
held-out examples says how many of the worst must be left out, found by halving. The same greedy order, by the metric:
NNCF's `quantize_with_accuracy_control`
(https://docs.openvino.ai/2024/openvino-workflow/model-optimization-guide/quantizing-models-post-training/quantizing-with-accuracy-control.html).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import GateError
from tritonpress_generator.graph import GraphMaterial
from tritonpress_generator.infer import Array
from tritonpress_generator.sampling import spread
from tritonpress_generator.table import render

_TEXTS = 16
"""On which a part's error is measured."""


@dataclass(frozen=True)
class Measured:
    """What a graph's parts cost when they are quantised."""

    model: onnx.ModelProto
    """Unquantised."""
    parts: Mapping[str, Sequence[str]]
    """What the nodes of each part give, by the part's name."""
    made: Callable[[Collection[str]], onnx.ModelProto]
    """Returns the quantised graph, but for the nodes that give what is named."""
    samples: Sequence[dict[str, Array]]
    material: GraphMaterial

    def left_out(self, keep: float, *, key: str, where: str) -> list[str]:
        """Returns what the nodes give that are to stay unquantised; the manifest says which parts these are.

        Args:
            keep: The share of the unquantised graph's metric that must be kept.
            key: Says all that the choice depends on, but for the held-out examples.
            where: The graph pass, for the message.

        Raises:
            InputError: There are no held-out examples.
            GateError: The metric holds with none of the parts.
        """
        key = f"{key} {self.material.held_out()}"
        record = self.material.kept.get(key)
        if record is None:
            record = self.record(keep, where=where)
            self.material.kept.put(key, record)
        self.material.note(record)
        return self._nodes(record["left_out"])

    def record(self, keep: float, *, where: str) -> dict[str, Any]:
        """Returns `errors` by part, `metrics` by how many are left out, and which are: `left_out`, the worst first.

        Raises:
            InputError: As `left_out`; likewise GateError.
        """
        errors = self.errors()
        order = sorted(errors, key=errors.__getitem__, reverse=True)
        unquantized = self.material.score(self.model)
        metrics: dict[str, float] = {}

        def holds(count: int) -> bool:
            metrics[str(count)] = self.material.score(self.made(self._nodes(order[:count])))
            return metrics[str(count)] >= keep * unquantized

        # With all left out it is the graph as it was, which is not asked again.
        fewest, most = (0, 0) if holds(0) else (1, len(order))
        while fewest < most:
            middle = (fewest + most) // 2
            fewest, most = (fewest, middle) if holds(middle) else (middle + 1, most)
        if most == len(order):
            raise GateError(
                f"{where}: keep: must leave a part to quantise, {keep:g} of the metric's {unquantized:.4f} on held-out "
                f"examples leaves none of {len(order)} (all quantised: {metrics['0']:.4f})",
                f"lower it, or leave {where} out",
            )
        return {"errors": errors, "unquantized": unquantized, "metrics": metrics, "left_out": order[:most]}

    def errors(self) -> dict[str, float]:
        """Returns how far the outputs move when a part alone is quantised, relative to their size."""
        texts = spread(self.samples, _TEXTS)
        expected = _answers(self.model, texts)
        found = {}
        for name in self.parts:
            others = self._nodes([other for other in self.parts if other != name])
            answers = _answers(self.made(others), texts)
            found[name] = float(np.sqrt(np.mean([_relative(answers[k], expected[k]) for k in expected])))
        return found

    def _nodes(self, parts: Sequence[str]) -> list[str]:
        return [name for part in parts for name in self.parts[part]]


def table(record: Mapping[str, Any]) -> str:
    """Returns what was measured as text: parts' errors in the order of the flow, the metric by how many are left out.

    Args:
        record: As `Measured.record` gives it, and the manifest has it.
    """
    left_out = record["left_out"]
    worst = max(record["errors"].values())
    parts = [
        [name, f"{error:.4f}", ("█" * round(20 * error / worst if worst else 0)).ljust(20), _mark(name in left_out)]
        for name, error in record["errors"].items()
    ]
    counted = sorted(record["metrics"].items(), key=lambda item: int(item[0]))
    metrics = [[count, f"{metric:.4f}"] for count, metric in (("all", record["unquantized"]), *counted)]
    return "\n".join(
        [
            render(["quantised alone", "error", "", ""], parts),
            render(["left out", "held-out metric"], metrics),
        ]
    )


def _mark(is_left_out: bool) -> str:
    return "left out" if is_left_out else ""


def _answers(model: onnx.ModelProto, texts: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Returns all that each output of `model` holds over `texts`, in one row."""
    infer = session_infer(model.SerializeToString())
    answers = [infer(feed) for feed in texts]
    return {name: np.concatenate([answer[name].ravel() for answer in answers]) for name in answers[0]}


def _relative(got: Array, expected: Array) -> float:
    """Returns the squared error relative to the expected values' squares."""
    return float(np.square(got - expected).sum() / max(float(np.square(expected).sum()), 1e-30))
