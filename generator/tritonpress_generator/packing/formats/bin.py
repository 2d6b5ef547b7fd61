"""Constants of an OpenVINO model: the `.xml` beside the `.bin` says where they are (docs.openvino.ai, OpenVINO IR)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tritonpress_generator.packing.formats import Tensor

_XML_BYTES = 256 << 20
_PRECISIONS = {
    "f32": "FP32",
    "f16": "FP16",
    "bf16": "BF16",
    "f8e4m3": "FP8",
    "f8e5m2": "FP8",
    "i8": "INT8",
    "u8": "INT8",
}
_DATA = re.compile(rb"<data\s([^<>]*)>")
_ATTRIBUTE = re.compile(rb'(element_type|offset|size)="([^"]*)"')


def tensors(file: BinaryIO, path: Path) -> Iterator[Tensor]:
    """Yields the constants.

    Raises:
        ValueError: There is no such `.xml`.
    """
    xml = path.with_suffix(".xml")
    if not xml.is_file() or xml.stat().st_size > _XML_BYTES:
        raise ValueError(f"{xml.name} is missing")
    with xml.open("rb") as lines:
        for line in lines:
            for data in _DATA.findall(line):
                found = {key.decode(): value.decode("ascii", "replace") for key, value in _ATTRIBUTE.findall(data)}
                if found.keys() >= {"element_type", "offset", "size"} and int(found["size"]) > 0:
                    precision = _PRECISIONS.get(found["element_type"], "other")
                    yield Tensor(int(found["offset"]), int(found["size"]), precision)
