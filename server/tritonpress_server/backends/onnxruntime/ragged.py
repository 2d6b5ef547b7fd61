"""Ragged batching (`batch_input`, `batch_output`): inputs made of the requests' shapes, outputs given back by them.

What each kind means is said in Triton's `model_config.proto`; the counting is that of the native backends' common code
(github.com/triton-inference-server/backend: `backend_input_collector.cc`, `backend_output_responder.cc`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from onnx_config import ConfigError, model_dims  # type: ignore[import-not-found]

Array = npt.NDArray[Any]
Tensors = dict[str, Array]
Shape = tuple[int, ...]


def _counts(shapes: Sequence[Shape]) -> Array:
    """The elements of each request, a client's batch of several rows being one request."""
    return np.array([math.prod(shape) for shape in shapes], np.int64)


def _item_shapes(shapes: Sequence[Shape]) -> Array:
    """The shape of each row, `(rows, dims)`: the rows of a client's batch count one by one."""
    return np.concatenate([np.tile(np.array(shape[1:], np.int64), (shape[0], 1)) for shape in shapes])


KINDS: dict[str, Callable[[Sequence[Shape]], Array]] = {
    "BATCH_ELEMENT_COUNT": _counts,
    "BATCH_ACCUMULATED_ELEMENT_COUNT": lambda shapes: np.cumsum(_counts(shapes)),
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": lambda shapes: np.cumsum([0, *_counts(shapes)]),
    # The native backend leaves the values as the memory had them.
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE": lambda shapes: np.zeros(np.max(_counts(shapes))),
    "BATCH_ITEM_SHAPE": _item_shapes,
    "BATCH_ITEM_SHAPE_FLATTEN": lambda shapes: _item_shapes(shapes).reshape(-1),
}


class BatchInput:
    """An input that is made of the shapes that another has in the requests of an execution."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.name = _target_name("batch_input", entry)
        self._source: str = entry["source_input"][0]
        self._of_shapes = KINDS[entry["kind"]]
        self._dtype = pb_utils.triton_string_to_numpy(entry["data_type"])

    def value(self, requests: Sequence[Tensors]) -> Array:
        """The input's value for the requests of one execution."""
        return self._of_shapes([request[self._source].shape for request in requests]).astype(self._dtype)


class BatchOutput:
    """An output given back in its config's dims, of which a dynamic one is what the source has in the same place."""

    def __init__(self, entry: dict[str, Any], config: dict[str, Any]) -> None:
        self.name = _target_name("batch_output", entry)
        self._source: str = entry["source_input"][0]
        batch = [-1] if config["max_batch_size"] else []
        output = next(tensor for tensor in config["output"] if tensor["name"] == self.name)
        source = next(tensor for tensor in config["input"] if tensor["name"] == self._source)
        self._dims: list[int] = batch + model_dims(output)
        source_dims = batch + model_dims(source)
        if output["data_type"] == "TYPE_STRING":
            raise ConfigError(
                f"batch_output {self.name!r} must have a data_type of fixed size, got TYPE_STRING; "
                "give the output a batch dimension in the graph instead"
            )
        if -1 in self._dims[len(source_dims) :]:
            raise ConfigError(
                f"batch_output {self.name!r} must have dynamic dims only where source_input {self._source!r} has dims, "
                f"got {self._dims} for {source_dims}, the batch's included; give the others a size"
            )

    def shape(self, request: Tensors) -> Shape:
        """The shape of the request's part."""
        source = request[self._source].shape
        return tuple(source[place] if size == -1 else size for place, size in enumerate(self._dims))


def split(name: str, result: Array, shapes: Sequence[Shape]) -> list[Array | str]:
    """Each request's part of an output, or why it has none, in `shapes` from the first element on.

    What is left over is nobody's. Where the result ends too soon, the requests that got their part whole have it; the
    native backend says so of outputs that are no `batch_output`, and with these reads on into whatever comes behind.
    """
    flat = result.reshape(-1)
    parts: list[Array | str] = []
    end = 0
    for shape in shapes:
        begin, end = end, end + math.prod(shape)
        if end <= flat.size:
            parts.append(flat[begin:end].reshape(shape))
        else:
            parts.append(
                f"failed to split output {name!r} of shape {list(result.shape)}: it must have {end} elements up to the "
                f"part {list(shape)} of this request, got {flat.size}; correct the graph, or the output's dims, "
                "batch_output or source_input in the config"
            )
    return parts


def _target_name(kind: str, entry: dict[str, Any]) -> str:
    # With another number the native backend loads, and fails at each request or answers under one name alone.
    names: list[str] = entry["target_name"]
    if len(names) != 1:
        raise ConfigError(f"{kind} must have one target_name, got {names}; write one {kind} for each tensor")
    return names[0]
