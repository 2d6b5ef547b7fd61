"""The engine in `model.xml`, run by OpenVINO in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import openvino
from numpy.typing import NDArray


class Engine:
    """A compiled model."""

    def __init__(self, folder: Path, parameters: Mapping[str, str]) -> None:
        """Loads the model in `folder`.

        Args:
            folder: Has `model.xml` and `model.bin`.
            parameters: Of Triton's config, by the names of its native backend.
        """
        settings = {name: parameters[name] for name in ("INFERENCE_NUM_THREADS", "NUM_STREAMS")}
        if parameters.get("HINT_BF16") == "YES":
            settings["INFERENCE_PRECISION_HINT"] = "bf16"
        self._model = openvino.Core().compile_model(str(folder / "model.xml"), "CPU", settings)
        self._inputs = [port.any_name for port in self._model.inputs]
        self._outputs = [port.any_name for port in self._model.outputs]

    def __call__(self, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yields the model's outputs for each of `feeds`."""
        for feed in feeds:
            answer = self._model({name: feed[name] for name in self._inputs})
            yield {name: answer[name] for name in self._outputs}
