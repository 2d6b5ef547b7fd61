"""Configs of a `tensorrt_plan` as Triton gives them to a model."""

from __future__ import annotations

from typing import Any


def model_config(**changes: Any) -> dict[str, Any]:
    """A config that fits y = x + 1 over (batch, 4) FP32, changed."""
    tensor = {"data_type": "TYPE_FP32", "dims": [4]}
    return {
        "max_batch_size": 8,
        "input": [{"name": "x", **tensor}],
        "output": [{"name": "y", **tensor}],
        "instance_group": [{"name": "m_0", "profile": changes.pop("profile", [])}],
        "default_model_filename": "model.plan",
        **changes,
    }


def any_width() -> dict[str, Any]:
    """The inputs and outputs of a plan over (batch, width)."""
    tensor = {"data_type": "TYPE_FP32", "dims": [-1]}
    return {"input": [{"name": "x", **tensor}], "output": [{"name": "y", **tensor}]}


def spec(batch: int, *, least: int | None = None, width: int = 4, least_width: int | None = None) -> dict[str, Any]:
    """A graph_spec of x, with a lower bound where `least` is given."""
    bound = {"batch_size": least, "input": {"x": {"dim": [str(least_width or width)]}}}
    return {
        "batch_size": batch,
        "input": {"x": {"dim": [str(width)]}},
        **({} if least is None else {"graph_lower_bound": bound}),
    }


def cuda_graphs(*specs: dict[str, Any]) -> dict[str, Any]:
    """An `optimization` with CUDA graphs."""
    return {"cuda": {"graphs": True, "graph_spec": list(specs)}}
