"""Runs a graph on a task's texts, to see what values its activations take."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tritonpress_generator import smoothing
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array
from tritonpress_generator.machine import versions

FEWEST_TEXTS = 8
"""Texts, of fewer of which a range says little."""
Method = Literal["min_max", "entropy", "percentile"]
"""How an activation's range is chosen: all that was seen, the least divergence, or a share of it."""
_ROWS_OF_SAMPLE = 2
"""Tokens of each text on which a product's error is measured."""
_BINS = 1024
_QUANTIZED_BINS = 128
"""Of signed values, so that it compares with half as many magnitudes as codes have. With all of them it is nearer for
some tensors and farther for others (docs/measurements.md)."""


def observe(
    model: onnx.ModelProto, names: Sequence[str], samples: Sequence[Mapping[str, Array]]
) -> dict[str, smoothing.Observed]:
    """Returns what values each of the tensors `names`, whose last dimension is the channels, takes over `samples`."""
    generator = np.random.default_rng(0)
    seen: dict[str, list[tuple[Array, Array, Array]]] = {name: [] for name in names}
    for tensors in _run(model, names, samples):
        for name, tensor in tensors.items():
            rows = tensor.reshape(-1, tensor.shape[-1])
            chosen = rows[generator.permutation(len(rows))[:_ROWS_OF_SAMPLE]]
            seen[name].append((rows.min(axis=0), rows.max(axis=0), chosen))
    observed = {}
    for name, parts in seen.items():
        low, high, some = zip(*parts, strict=True)
        observed[name] = smoothing.Observed(np.min(low, axis=0), np.max(high, axis=0), np.concatenate(some))
    return observed


def largest(model: onnx.ModelProto, names: Sequence[str], samples: Sequence[Mapping[str, Array]]) -> dict[str, float]:
    """Returns the largest magnitude that each of the tensors `names` takes over `samples`."""
    found = dict.fromkeys(names, 0.0)
    for tensors in _run(model, names, samples):
        for name, tensor in tensors.items():
            found[name] = max(found[name], float(np.abs(tensor).max()))
    return found


def clipped(
    model: onnx.ModelProto,
    largest: Mapping[str, float],
    samples: Sequence[Mapping[str, Array]],
    *,
    method: Method,
    percentile: float,
    divided: Callable[[str, Array], Array],
    tensors: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Returns the largest magnitude that each activation's codes should hold, chosen from a histogram.

    Args:
        model: The graph.
        largest: The largest magnitude of each activation that is calibrated, by name.
        samples: What it is run on.
        method: `entropy` (the least Kullback-Leibler divergence, as ONNX Runtime searches for it; after Migacz 2017,
            "8-bit Inference with TensorRT"), `percentile`, or `min_max`: `largest`, and nothing is run.
        percentile: The share of values that are not clipped, in %.
        divided: Gives an activation, of its tensor, as it will be quantised.
        tensors: Names of the activations' tensors; default: their own.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    if method == "min_max" or not largest:
        return dict(largest)
    read = {name: name if tensors is None else tensors[name] for name in largest}
    counts = {name: np.zeros(_BINS, np.int64) for name in largest}
    for given in _run(model, list(read.values()), samples):
        for name, most in largest.items():
            counts[name] += np.histogram(divided(name, given[read[name]]), _BINS, (-most, most))[0]
    if method == "percentile":
        # ONNX Runtime's leaves out half of that at each end, of which tensors behind an activation have one.
        return {name: _holding(counts[name], value, percentile) for name, value in largest.items()}
    edges = {name: np.linspace(-value, value, _BINS + 1, dtype=np.float32) for name, value in largest.items()}
    collector = HistogramCollector(method, False, _BINS, _QUANTIZED_BINS, percentile, None)
    for name, value in largest.items():
        end = np.float32(value)
        collector.histogram_dict[name] = (counts[name], edges[name], -end, end, end)
    with contextlib.redirect_stdout(io.StringIO()):
        ranges = collector.compute_collection_result()
    return {name: float(max(-low, high)) for name, (low, high, *_) in ranges.items()}


def _holding(counts: NDArray[np.int64], largest: float, percentile: float) -> float:
    """Returns the least magnitude that holds `percentile` % of the values counted from `-largest` to `largest`."""
    half = len(counts) // 2
    within = np.cumsum(counts[half:] + counts[:half][::-1])
    place = int(np.searchsorted(within, percentile / 100 * within[-1]))
    return largest * (place + 1) / half


def kept_key(word: str, model: onnx.ModelProto, settings: str, samples: Sequence[Mapping[str, Array]]) -> str:
    """Returns what says all that a calibration depends on, for `Kept`.

    Args:
        word: The graph pass.
        model: The graph.
        settings: Of the pass, as text.
        samples: What it is run on.
    """
    digest = hashlib.sha256(model.SerializeToString(deterministic=True))
    digest.update(json.dumps([versions(), settings]).encode())
    for feed in samples:
        for name, tensor in sorted(feed.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode() + tensor.tobytes())
    return f"{word} {digest.hexdigest()}"


def included(
    products: list[onnx.NodeProto], patterns: Sequence[str], *, where: str, kind: str = "product"
) -> list[onnx.NodeProto]:
    """Returns the nodes, each a `kind`, whose names match none of `patterns`.

    Raises:
        InputError: A pattern matches none, or nothing is left.
    """
    for pattern in patterns:
        if not any(fnmatchcase(node.name, pattern) for node in products):
            raise InputError(
                f"{where}: exclude: must match the name of a {kind}, {pattern!r} matches none of {len(products)}; "
                f"they are named like {products[0].name!r}"
            )
    left = [node for node in products if not any(fnmatchcase(node.name, pattern) for pattern in patterns)]
    if not left:
        raise InputError(
            f"{where}: exclude: must leave a {kind} to quantise, all {len(products)} match; leave {where} out"
        )
    return left


def _run(
    model: onnx.ModelProto, names: Sequence[str], samples: Sequence[Mapping[str, Array]]
) -> Iterator[dict[str, Array]]:
    """Yields the tensors `names` of each of `samples`."""
    names = list(dict.fromkeys(names))
    if not names:
        return
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = {tensor.name for tensor in watched.graph.output}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in given
    )
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    for feed in samples:
        yield dict(zip(names, session.run(names, dict(feed)), strict=True))
