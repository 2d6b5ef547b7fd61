"""The CUDA graphs that a Triton config asks for: `optimization.cuda` of NVIDIA's backend."""

from collections.abc import Mapping, Sequence
from typing import Any

from plan_config import ConfigError  # type: ignore[import-not-found]
from plan_shapes import Graph, Profile, Shape  # type: ignore[import-not-found]

# Captured where the config asks for graphs and names none, as far as max_batch_size goes.
USUAL_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)


def graphs(config: Mapping[str, Any], profiles: Sequence[Profile]) -> tuple[list[Graph], list[str]]:
    """The CUDA graphs to capture, in each profile that holds them, and warnings of those that none does.

    Raises:
        ConfigError: A graph's spec contradicts itself, or lacks an input.
    """
    cuda = config.get("optimization", {}).get("cuda", {})
    if not cuda.get("graphs"):
        return [], []
    specs = cuda.get("graph_spec") or [{"batch_size": size} for size in _default_batches(config)]
    found: list[Graph] = []
    warnings = []
    for spec in specs:
        holding = 0
        for profile in profiles:
            graph = _graph(spec, profile, batches=config["max_batch_size"] > 0)
            if profile.why_not(graph.shapes) is None:
                holding += 1
                if graph not in found:
                    found.append(graph)
        if not holding:
            warnings.append(
                f"optimization.cuda.graph_spec {_said(spec)} is not captured: no optimization profile holds it"
            )
        elif _padded_inside(spec):
            warnings.append(
                f"optimization.cuda.graph_spec {_said(spec)} is padded in its batch alone, the rest must be equal"
            )
    return found, warnings


def _graph(spec: Mapping[str, Any], profile: Profile, *, batches: bool) -> Graph:
    batch = int(spec.get("batch_size", 0))
    if batches != (batch > 0):
        rule = "at least 1" if batches else "0 where max_batch_size is"
        raise ConfigError(f"optimization.cuda.graph_spec.batch_size must be {rule}, got {batch}")
    dims = _spec_dims(spec)
    if dims and set(dims) != set(profile.most):
        raise ConfigError(
            f"optimization.cuda.graph_spec must have a shape for each input, {', '.join(profile.most)}, got "
            f"{', '.join(dims)}"
        )
    shapes: dict[str, Shape] = {}
    for name, opt in profile.opt.items():
        rest = dims[name] if dims else opt[int(batches) :]
        shapes[name] = (batch, *rest) if batches else rest
    bound = spec.get("graph_lower_bound")
    if bound is None or not batches:
        return Graph(profile.number, shapes)
    least = max(1, int(bound.get("batch_size", 0)))
    lower = _spec_dims(bound)
    pairs = [pair for name, sizes in lower.items() for pair in zip(sizes, dims.get(name, ()), strict=False)]
    if least > batch or any(low > high for low, high in pairs):
        raise ConfigError(f"optimization.cuda.graph_spec.graph_lower_bound must be below its graph, got {_said(spec)}")
    return Graph(profile.number, shapes, least)


def _default_batches(config: Mapping[str, Any]) -> list[int]:
    most = config["max_batch_size"]
    if not most:
        return [0]
    preferred = config.get("dynamic_batching", {}).get("preferred_batch_size", ())
    usual = (1, *preferred) if "dynamic_batching" in config else USUAL_BATCHES
    return sorted({size for size in (*usual, most) if size <= most})


def _padded_inside(spec: Mapping[str, Any]) -> bool:
    lower = _spec_dims(spec.get("graph_lower_bound") or {})
    return bool(lower) and lower != _spec_dims(spec)


def _spec_dims(spec: Mapping[str, Any]) -> dict[str, Shape]:
    return {name: tuple(int(size) for size in given["dim"]) for name, given in spec.get("input", {}).items()}


def _said(spec: Mapping[str, Any]) -> str:
    dims = ", ".join(f"{name} {list(sizes)}" for name, sizes in _spec_dims(spec).items())
    return f"with batch_size {spec.get('batch_size', 0)}" + (f" and {dims}" if dims else "")
