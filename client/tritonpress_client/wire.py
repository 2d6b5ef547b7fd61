"""Tensors as KServe's gRPC protocol carries them: numpy arrays to a `ModelInferRequest`, and an answer back.

The messages are filled in directly: tritonclient's `InferInput` copies each tensor's text three times.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from tritonpress_client.errors import InvalidInputError, ServerError

NDArray = np.ndarray[Any, Any]

_LENGTH = struct.Struct("<I")


def infer_request(model: str, outputs: Sequence[str] | None, priority: int = 0) -> Any:
    """Returns a request without inputs; its priority is the model's default where it is 0."""
    request = service_pb2.ModelInferRequest(model_name=model)
    if priority:
        request.parameters["priority"].uint64_param = priority
    for name in outputs or ():
        request.outputs.add(name=name)
    return request


def add_text(request: Any, name: str, texts: Sequence[bytes]) -> None:
    """Adds an input BYTES (batch, 1)."""
    request.inputs.add(name=name, datatype="BYTES", shape=(len(texts), 1))
    request.raw_input_contents.append(_joined(texts))


def add_arrays(request: Any, inputs: Mapping[str, NDArray]) -> None:
    """Adds inputs of any type.

    Raises:
        InvalidInputError: A value is no array, or holds what Triton does not know.
    """
    for name, value in inputs.items():
        if not isinstance(value, np.ndarray):
            raise InvalidInputError(f"input {name!r} must be a numpy array, got {type(value).__name__}")
        datatype = "BYTES" if value.dtype.kind == "U" else np_to_triton_dtype(value.dtype)
        if datatype is None:
            message = f"input {name!r} has dtype {value.dtype}, which Triton does not know; convert it first"
            raise InvalidInputError(message)
        request.inputs.add(name=name, datatype=datatype, shape=value.shape)
        content = _joined(_elements(name, value)) if datatype == "BYTES" else np.ascontiguousarray(value).tobytes()
        request.raw_input_contents.append(content)


def arrays(response: Any, outputs: Sequence[str] | None) -> dict[str, NDArray]:
    """Returns the outputs by name; numeric ones are read-only views of the answer, BYTES are object arrays of bytes.

    Raises:
        ValueError: The answer is not what its own shapes and datatypes say.
    """
    found = _contents(response, outputs)
    return {name: _array(*found[name]) for name in outputs or found}


def rows(response: Any, outputs: Sequence[str], batch: int, count: int | None) -> list[tuple[list[Any], ...]]:
    """Returns for each element of the batch its values, at most `count` an output, in the order of `outputs`.

    Raises:
        ValueError: The answer is not what its own shapes and datatypes say, or is not of that batch.
    """
    found = _contents(response, outputs)
    columns = []
    for name in outputs:
        tensor, content = found[name]
        if len(tensor.shape) != 2 or tensor.shape[0] != batch:
            raise ValueError(f"{batch} elements came back as {name} {list(tensor.shape)}")
        if tensor.datatype == "BYTES":
            # As lists at once: an array of objects would only be taken apart again.
            values, width = _texts(tensor, content), tensor.shape[1]
            columns.append([values[row * width : (row + 1) * width][:count] for row in range(batch)])
        else:
            columns.append(_array(tensor, content)[:, :count].tolist())
    return list(zip(*columns, strict=True))


def malformed(error: Exception, *, target: str, model: str) -> ServerError:
    """Returns the error for an answer that is not what the protocol says."""
    message = f"model {model!r} at {target} gave an answer that cannot be read: {error}; is this a Triton server?"
    return ServerError(message, target=target, model=model)


def _contents(response: Any, outputs: Sequence[str] | None) -> dict[str, tuple[Any, bytes]]:
    """Returns the description and the content of each output by name, and refuses an answer that lacks one."""
    if len(response.raw_output_contents) != len(response.outputs):
        raise ValueError(f"{len(response.outputs)} outputs have {len(response.raw_output_contents)} contents")
    found = {
        tensor.name: (tensor, content)
        for tensor, content in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    if missing := [name for name in outputs or () if name not in found]:
        raise ValueError(f"it has no output {', '.join(sorted(missing))}")
    return found


def _texts(tensor: Any, content: bytes) -> list[bytes]:
    values, expected = _split(content), math.prod(tensor.shape)
    if len(values) != expected:
        raise ValueError(f"output {tensor.name} of shape {list(tensor.shape)} has {len(values)} texts")
    return values


def _array(tensor: Any, content: bytes) -> NDArray:
    shape = tuple(tensor.shape)
    if tensor.datatype == "BYTES":
        values = np.empty(math.prod(shape), dtype=object)
        values[:] = _texts(tensor, content)
        return values.reshape(shape)
    dtype = triton_to_np_dtype(tensor.datatype)
    if dtype is None:
        raise ValueError(f"output {tensor.name} has datatype {tensor.datatype!r}")
    return np.frombuffer(content, dtype=dtype).reshape(shape)


def _joined(texts: Iterable[bytes]) -> bytes:
    return b"".join([part for text in texts for part in (_LENGTH.pack(len(text)), text)])


def _split(content: bytes) -> list[bytes]:
    parts: list[bytes] = []
    start, whole, unpack = 0, len(content), _LENGTH.unpack_from
    while start < whole:
        if start + 4 > whole:
            raise ValueError("a text's length is cut off")
        end = start + 4 + unpack(content, start)[0]
        if end > whole:
            raise ValueError("a text is cut off")
        parts.append(content[start + 4 : end])
        start = end
    return parts


def _elements(name: str, value: NDArray) -> list[bytes]:
    elements = []
    for element in value.flat:
        if isinstance(element, bytes):
            elements.append(bytes(element))
        elif isinstance(element, str):
            try:
                elements.append(element.encode())
            except UnicodeEncodeError as exc:
                message = (
                    f"input {name!r} cannot be encoded as UTF-8 ({exc.reason} at character {exc.start}); replace it"
                )
                raise InvalidInputError(message) from exc
        else:
            message = f"input {name!r} must hold bytes or str, got {type(element).__name__}; convert it first"
            raise InvalidInputError(message)
    return elements
