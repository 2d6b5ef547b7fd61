"""What a server says about itself and its models, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ServerMetadata:
    """A server: its name (`triton` unless its operator chose another) and Triton's version."""

    name: str
    version: str


@dataclass(frozen=True)
class ModelStatus:
    """A version of a model in the server's repository, and whether it is served."""

    name: str
    version: str
    state: str
    """Triton's word: `READY`, `LOADING`, `UNLOADING` or `UNAVAILABLE`; empty for a model that was never loaded."""
    reason: str
    """Why it is not ready; empty where it is."""

    @property
    def ready(self) -> bool:
        """Whether this version answers requests."""
        return self.state == "READY"


@dataclass(frozen=True)
class TensorMetadata:
    """An input or an output: Triton's datatype (`BYTES`, `FP32`, …) and its shape, −1 where it varies."""

    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """A model's contract."""

    name: str
    platform: str
    versions: tuple[str, ...]
    max_batch_size: int
    """The most rows in one request; 0 where the model takes no batch dimension."""
    inputs: dict[str, TensorMetadata]
    outputs: dict[str, TensorMetadata]


def model_metadata_from_proto(metadata: Any, max_batch_size: int) -> ModelMetadata:
    """Returns the plain form of a `ModelMetadataResponse`."""
    return ModelMetadata(
        name=metadata.name,
        platform=metadata.platform,
        versions=tuple(metadata.versions),
        max_batch_size=max_batch_size,
        inputs={tensor.name: TensorMetadata(tensor.datatype, tuple(tensor.shape)) for tensor in metadata.inputs},
        outputs={tensor.name: TensorMetadata(tensor.datatype, tuple(tensor.shape)) for tensor in metadata.outputs},
    )
