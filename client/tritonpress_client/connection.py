"""A connection to one Triton server: tensors in, tensors out, errors as `tritonpress_client.errors`."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from tritonpress_client.errors import InvalidInputError, translated_errors
from tritonpress_client.metadata import ModelMetadata, ModelStatus, ServerMetadata, model_metadata_from_proto
from tritonpress_client.statistics import ModelStatistics, model_statistics_from_proto

NDArray = np.ndarray[Any, Any]

_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\]]+):\d{1,5}")
_GRPC_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "xds:")


class _Client(triton.InferenceServerClient):  # type: ignore[misc]
    """tritonclient's, closed once and in time.

    Its own `__del__` closes a second time, which makes gRPC under gevent miscount its channels, and may run so late in
    the interpreter's shutdown that it waits for ever.
    """

    def __del__(self) -> None:
        """Leaves the closing to the connection."""


class Connection:
    """A gRPC connection to one Triton server; a context manager, safe to share between threads.

    It connects with the first call. What is never closed is closed when it is collected, or at exit.

    Args:
        url: `HOST:PORT` of Triton's gRPC endpoint, or a gRPC target such as `unix:///run/triton.sock`.
        timeout_s: The deadline of each call in seconds.

    Raises:
        InvalidInputError: `url` is not such an address, or `timeout_s` is not a finite number above 0.
    """

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        if not isinstance(url, str) or not (url.startswith(_GRPC_SCHEMES) or _HOST_AND_PORT.fullmatch(url)):
            raise InvalidInputError(f"`url` must be HOST:PORT of Triton's gRPC endpoint, without http://, got {url!r}")
        if not (isinstance(timeout_s, int | float) and math.isfinite(timeout_s) and timeout_s > 0):
            raise InvalidInputError(f"`timeout_s` must be a finite number of seconds above 0, got {timeout_s!r}")
        self.url = url
        self.timeout_s = timeout_s
        self._client = _Client(url)
        self._close = weakref.finalize(self, self._client.close)
        self._requested_outputs: dict[str, triton.InferRequestedOutput] = {}

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; calls in flight are cancelled. Closing twice does no harm."""
        self._close()

    def infer(self, model: str, inputs: dict[str, NDArray], outputs: Sequence[str] | None = None) -> dict[str, NDArray]:
        """Returns the model's outputs by name.

        Args:
            model: The model's name; Triton serves its newest version.
            inputs: By name; text as object arrays of bytes or str (sent as BYTES), others by their numpy dtype.
            outputs: The names of the outputs wanted; all of them by default.

        Returns:
            Arrays by name; BYTES as object arrays of bytes. Numeric arrays are views of the answer and read-only.

        Raises:
            TritonpressError: See `tritonpress_client.errors`.
        """
        tensors = [_infer_input(name, value) for name, value in inputs.items()]
        requested = None if outputs is None else [self._requested_output(name) for name in outputs]
        with translated_errors(self.url, model, self.timeout_s):
            result = self._client.infer(model, tensors, outputs=requested, client_timeout=self.timeout_s)
        names = outputs if outputs is not None else [output.name for output in result.get_response().outputs]
        return {name: result.as_numpy(name) for name in names}

    def model_metadata(self, model: str) -> ModelMetadata:
        """Returns the model's inputs, outputs and largest batch (two calls)."""
        with translated_errors(self.url, model, self.timeout_s):
            metadata = self._client.get_model_metadata(model, client_timeout=self.timeout_s)
            config = self._client.get_model_config(model, client_timeout=self.timeout_s).config
        return model_metadata_from_proto(metadata, config.max_batch_size)

    def statistics(self, model: str = "") -> list[ModelStatistics]:
        """Returns the counters of each version of the model, or of all models, since the server loaded it."""
        with translated_errors(self.url, model, self.timeout_s):
            answer = self._client.get_inference_statistics(model, client_timeout=self.timeout_s)
        return [model_statistics_from_proto(entry) for entry in answer.model_stats]

    def ready(self, model: str = "") -> bool:
        """Returns whether the model answers requests; without a name, whether the server and all its models do."""
        with translated_errors(self.url, model, self.timeout_s):
            if model:
                return bool(self._client.is_model_ready(model, client_timeout=self.timeout_s))
            return bool(self._client.is_server_ready(client_timeout=self.timeout_s))

    def models(self) -> list[ModelStatus]:
        """Returns the models in the server's repository, those that are not ready too, by name and version."""
        with translated_errors(self.url, "", self.timeout_s):
            index = self._client.get_model_repository_index(client_timeout=self.timeout_s)
        statuses = [ModelStatus(entry.name, entry.version, entry.state, entry.reason) for entry in index.models]
        return sorted(statuses, key=lambda status: (status.name, status.version))

    def server_metadata(self) -> ServerMetadata:
        """Returns the server's name and version."""
        with translated_errors(self.url, "", self.timeout_s):
            answer = self._client.get_server_metadata(client_timeout=self.timeout_s)
        return ServerMetadata(answer.name, answer.version)

    def _requested_output(self, name: str) -> triton.InferRequestedOutput:
        # They hold a name and nothing of a call, so that one serves all calls.
        if name not in self._requested_outputs:
            self._requested_outputs[name] = triton.InferRequestedOutput(name)
        return self._requested_outputs[name]


def _infer_input(name: str, value: NDArray) -> triton.InferInput:
    """Returns the tensor as tritonclient sends it."""
    if not isinstance(value, np.ndarray):
        raise InvalidInputError(f"input {name!r} must be a numpy array, got {type(value).__name__}")
    if value.dtype.kind == "U":
        value = value.astype(object)
    datatype = np_to_triton_dtype(value.dtype)
    if datatype is None:
        raise InvalidInputError(f"input {name!r} has dtype {value.dtype}, which Triton does not know; convert it first")
    if value.dtype.kind == "O":
        # tritonclient would send str(None) and str(3) without a word.
        for element in value.flat:
            if not isinstance(element, bytes | str):
                message = f"input {name!r} must hold bytes or str, got {type(element).__name__}; convert it first"
                raise InvalidInputError(message)
    tensor = triton.InferInput(name, value.shape, datatype)
    try:
        return tensor.set_data_from_numpy(value)
    except UnicodeEncodeError as exc:
        message = f"input {name!r} cannot be encoded as UTF-8 ({exc.reason} at character {exc.start}); replace it"
        raise InvalidInputError(message) from exc
