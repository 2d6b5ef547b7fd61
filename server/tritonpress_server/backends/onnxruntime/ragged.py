"""Ragged batching (`batch_input`, `batch_output`): inputs made of the requests' lengths, outputs given back by them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from onnx_config import ConfigError  # type: ignore[import-not-found]

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

ELEMENT_COUNTS: dict[str, Callable[[Array], Array]] = {
    "BATCH_ELEMENT_COUNT": lambda counts: counts,
    "BATCH_ACCUMULATED_ELEMENT_COUNT": np.cumsum,
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": lambda counts: np.concatenate([[0], np.cumsum(counts)]),
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE": lambda counts: np.zeros(np.max(counts)),
}
SCATTER = "BATCH_SCATTER_WITH_INPUT_SHAPE"


class BatchInput:
    """An input that the backend computes from the element counts of another, one count a request."""

    def __init__(self, entry: dict[str, Any]) -> None:
        if entry["kind"] not in ELEMENT_COUNTS:
            raise ConfigError(
                f"batch_input kind {entry['kind']} is not served here; use one of {', '.join(ELEMENT_COUNTS)}"
            )
        self.names: list[str] = entry["target_name"]
        self._source: str = entry["source_input"][0]
        self._of_counts = ELEMENT_COUNTS[entry["kind"]]
        self._dtype = pb_utils.triton_string_to_numpy(entry["data_type"])

    def value(self, requests: list[Tensors]) -> Array:
        """The input's value for the requests of one execution."""
        counts = np.array([request[self._source].size for request in requests])
        return self._of_counts(counts).astype(self._dtype)


class BatchOutput:
    """An output without a batch dimension, given back to each request in the shape of one of its inputs."""

    def __init__(self, entry: dict[str, Any]) -> None:
        if entry["kind"] != SCATTER:
            raise ConfigError(f"batch_output kind {entry['kind']} is not served here; use {SCATTER}")
        self._source: str = entry["source_input"][0]

    def split(self, result: Array, requests: list[Tensors]) -> list[Array]:
        """The part of each request."""
        shapes = [request[self._source].shape for request in requests]
        ends = np.cumsum([np.prod(shape, dtype=np.int64) for shape in shapes])
        if ends[-1] != result.size:
            raise ValueError(f"an output of {result.size} elements cannot be scattered to inputs of {ends[-1]}")
        return [
            part.reshape(shape) for part, shape in zip(np.split(result.reshape(-1), ends[:-1]), shapes, strict=True)
        ]
