"""The engine in `model.ort`, run in this process by ONNX Runtime, if need be by a build of few operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray


class Engine:
    """A session."""

    def __init__(self, folder: Path, parameters: Mapping[str, str]) -> None:
        """Loads the model in `folder`.

        Args:
            folder: Has `model.ort`.
            parameters: Of Triton's config, by the names of its native backend.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["intra_op_thread_count"])
        options.inter_op_num_threads = int(parameters["inter_op_thread_count"])
        options.enable_mem_pattern = parameters["enable_mem_pattern"] == "true"
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.ort"), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]

    def __call__(self, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yields the model's outputs for each of `feeds`."""
        for feed in feeds:
            yield dict(zip(self._outputs, self._session.run(self._outputs, dict(feed)), strict=True))
