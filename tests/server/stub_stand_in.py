"""A stand-in for the module that Triton's Python stub gives its models, where a test calls a model without Triton.

It has what the `tensorrt` backend uses, and copies a response's tensors when `execute` has returned, as the stub does.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonpress_server.runtime import OUR_BACKENDS

Array = npt.NDArray[Any]


class TritonModelException(Exception):  # noqa: N818 (Triton's name)
    pass


@dataclass
class TritonError:
    message: str
    code: str

    INVALID_ARG = "INVALID_ARG"
    INTERNAL = "INTERNAL"


class Tensor:
    def __init__(self, name: str, value: Array) -> None:
        self._name, self._value = name, value

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        return self._value


class InferenceResponse:
    def __init__(self, tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.tensors, self.error = tensors, error


class Logger:
    lines: list[tuple[str, str]]
    """By level."""

    def __init__(self) -> None:
        self.lines = []

    def __getattr__(self, name: str) -> Any:
        return lambda line: self.lines.append((name, line))


class Request:
    """A request with `inputs` for `outputs`."""

    def __init__(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> None:
        self._inputs, self._outputs = inputs, outputs

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, value) for name, value in self._inputs.items()]

    def requested_output_names(self) -> list[str]:
        return list(self._outputs)


def load_backend(name: str) -> Any:
    """The `model.py` of one of our backends, with the stand-in in place of the stub's module."""
    stub: Any = ModuleType("triton_python_backend_utils")
    stub.Tensor, stub.InferenceResponse, stub.TritonError = Tensor, InferenceResponse, TritonError
    stub.TritonModelException, stub.Logger = TritonModelException, Logger()
    before = sys.modules.get(stub.__name__)
    sys.modules[stub.__name__] = stub
    try:
        spec = importlib.util.spec_from_file_location(f"{name}_model", OUR_BACKENDS / name / "model.py")
        if spec is None or spec.loader is None:
            raise ImportError(name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del sys.modules[stub.__name__]
        else:
            sys.modules[stub.__name__] = before
    return module


def answered(model: Any, requests: Sequence[Request]) -> list[dict[str, Array] | TritonError]:
    """What each request gets: its outputs, copied when all are there, or its error."""
    responses = model.execute(list(requests))
    return [
        response.error or {tensor.name(): np.copy(tensor.as_numpy()) for tensor in response.tensors}
        for response in responses
    ]
