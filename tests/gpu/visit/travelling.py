"""Graphs that travel without their weights: real ones in FP16 beside them, random ones as the seed that makes them.

A tensor that was taken out leaves its SHA-256 in its place, so that what is put back is known to be what was there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

FEWEST_ELEMENTS = 4097
"""Of what is taken out: more than a bias or a scale has."""
_STANDARD_DEVIATION = 0.02
"""Of BERT's initialisation. Source: Devlin et al. 2019, `initializer_range`."""
_MARK = "sha256:"


class WeightsError(Exception):
    """A graph's weights are not those that it was packed with; one line says which."""


class Weights:
    """What graphs in a folder share: `weights.json`, the seeds by hash, and `weights/HASH.npy`, FP16."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = folder / "weights.json"
        text = self._index.read_text(encoding="utf-8") if self._index.exists() else "{}"
        self._seeds: dict[str, dict[str, Any]] = json.loads(text)

    def randomise(self, model: onnx.ModelProto, first_seed: int) -> None:
        """Gives `model` random weights for those that it has, FP32, and remembers how each was made."""
        for number, tensor in enumerate(_large(model)):
            made = {"seed": first_seed + number, "shape": list(tensor.dims)}
            value = _random(made)
            self._seeds[_hash(value)] = made
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._index.write_text(json.dumps(self._seeds, indent=1) + "\n", encoding="utf-8")

    def take_out(self, model: onnx.ModelProto) -> None:
        """Takes the weights out of `model`; those that are not random are written as FP16, which must hold them."""
        (self._folder / "weights").mkdir(parents=True, exist_ok=True)
        for tensor in _large(model):
            value = numpy_helper.to_array(tensor)
            name = _hash(value)
            path = self._folder / "weights" / f"{name}.npy"
            if name not in self._seeds and not path.exists():
                half = value.astype(np.float16)
                if not np.array_equal(half.astype(np.float32), value):
                    raise WeightsError(f"{tensor.name}: must be numbers of FP16 to travel; round the model first")
                np.save(path, half)
            tensor.ClearField("raw_data")
            tensor.doc_string = _MARK + name

    def put_back(self, model: onnx.ModelProto) -> None:
        """Fills `model` again.

        Raises:
            WeightsError: A weight is missing, or another one than was taken out.
        """
        for tensor in model.graph.initializer:
            if not tensor.doc_string.startswith(_MARK):
                continue
            name = tensor.doc_string.removeprefix(_MARK)
            if name in self._seeds:
                value = _random(self._seeds[name])
            else:
                path = self._folder / "weights" / f"{name}.npy"
                if not path.exists():
                    raise WeightsError(f"{tensor.name}: {path} is missing; pack the visit again")
                value = np.load(path).astype(np.float32)
            if _hash(value) != name:
                raise WeightsError(
                    f"{tensor.name}: must have the hash {name[:12]}, has {_hash(value)[:12]}; pack again"
                )
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns `model` with large weights that FP16 can hold, in FP32 still."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in _large(copy):
        largest = float(np.finfo(np.float16).max)
        value = np.clip(numpy_helper.to_array(tensor), -largest, largest).astype(np.float16).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return copy


def _large(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    return [tensor for tensor in tensors if int(np.prod(tensor.dims, dtype=np.int64)) >= FEWEST_ELEMENTS]


def _random(made: dict[str, Any]) -> NDArray[Any]:
    generator = np.random.default_rng(made["seed"])
    value: NDArray[Any] = generator.standard_normal(made["shape"], np.float32) * np.float32(_STANDARD_DEVIATION)
    return value


def _hash(value: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(value, np.float32).tobytes()).hexdigest()
