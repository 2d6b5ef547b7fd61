"""Tensors of an ONNX model: `raw_data` and `float_data`, found by walking protobuf's fields without loading the model.

The wire format is protobuf.dev/programming-guides/encoding, the fields are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tritonpress_generator.packing.formats import Tensor

_MESSAGES = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
_DATA_TYPE, _FLOAT_DATA, _RAW_DATA = 2, 4, 9
_PRECISIONS = {1: "FP32", 2: "INT8", 3: "INT8", 10: "FP16", 16: "BF16", 17: "FP8", 18: "FP8", 19: "FP8", 20: "FP8"}
"""By TensorProto.DataType; UINT8 is coded as INT8 is."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_DEPTH = 32


def tensors(file: BinaryIO, path: Path) -> Iterator[Tensor]:
    """Yields the tensors of a model, those of its subgraphs and attributes included.

    Raises:
        ValueError: It is no protobuf.
    """
    end = file.seek(0, 2)
    file.seek(0)
    yield from _message(file, end, "model", 0)


def _message(file: BinaryIO, end: int, kind: str, depth: int) -> Iterator[Tensor]:
    if depth > _DEPTH:
        raise ValueError("messages lie too deep")
    while file.tell() < end:
        field = _next(file, end)
        below = _MESSAGES[kind].get(field.number) if field.wire == _LENGTH else None
        if below is not None:
            file.seek(field.begin)
            inside = _tensor(file, field.end) if below == "tensor" else _message(file, field.end, below, depth + 1)
            yield from inside
        file.seek(field.end)


def _tensor(file: BinaryIO, end: int) -> Iterator[Tensor]:
    precision, data = "other", None
    while file.tell() < end:
        field = _next(file, end)
        if (field.number, field.wire) == (_DATA_TYPE, _VARINT):
            file.seek(field.begin)
            precision = _PRECISIONS.get(_varint(file), "other")
        elif field.number in {_RAW_DATA, _FLOAT_DATA} and field.wire == _LENGTH:
            data = field
        file.seek(field.end)
    if data is not None and data.end > data.begin:
        yield Tensor(data.begin, data.end - data.begin, precision)


class _Field(NamedTuple):
    number: int
    wire: int
    begin: int
    """Of its value, in bytes from the beginning of the file."""
    end: int


def _next(file: BinaryIO, end: int) -> _Field:
    """Returns the next field of a message that ends at `end`; `file` stands anywhere in it, then."""
    number, wire = divmod(_varint(file), 8)
    length = _varint(file) if wire == _LENGTH else {_FIXED32: 4, _FIXED64: 8}.get(wire, 0)
    begin = file.tell()
    if wire == _VARINT:
        _varint(file)
        length = file.tell() - begin
    elif wire not in {_LENGTH, _FIXED32, _FIXED64}:
        raise ValueError(f"wire type {wire}")
    if begin + length > end:
        raise ValueError("a field goes beyond its message")
    return _Field(number, wire, begin, begin + length)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("ends within a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than 64 bits")
