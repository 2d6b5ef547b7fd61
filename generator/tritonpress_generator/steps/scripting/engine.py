"""The engine as another Triton model, asked by business-logic scripting (a call from inside a Python step)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

_CALLS = 16
"""That are waited for at a time: enough for the engine's batcher to have companions for each, and for all instances."""


class Engine:
    """A model of the same server."""

    def __init__(self, folder: Path, parameters: Mapping[str, str]) -> None:
        """Keeps the model's name.

        Args:
            folder: Not read: the engine lies in its own model's.
            parameters: `engine`, the model's name, and `outputs`, the names of what it gives, with spaces between them.
        """
        self._model = parameters["engine"]
        self._outputs = parameters["outputs"].split()
        self._threads = ThreadPoolExecutor(_CALLS)

    def __call__(self, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Returns the model's outputs for each of `feeds`, which are asked together.

        Raises:
            TritonModelException: The model refuses the request, or is not there.
        """
        return self._threads.map(self._answer, feeds)

    def _answer(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        # Packed tensors have no dimension of a batch, which Triton wants.
        packed = "lengths" in feed
        inputs = [pb_utils.Tensor(name, tensor[None] if packed else tensor) for name, tensor in feed.items()]
        request = pb_utils.InferenceRequest(model_name=self._model, requested_output_names=self._outputs, inputs=inputs)
        response = request.exec()
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        outputs = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        return {name: tensor[0] for name, tensor in outputs.items()} if packed else outputs
