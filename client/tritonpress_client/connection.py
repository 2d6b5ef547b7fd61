"""Connections to Triton: tensors in, tensors out, errors as `tritonpress_client.errors`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import service_pb2

from tritonpress_client import wire
from tritonpress_client.calls import Calls
from tritonpress_client.metadata import ModelMetadata, ModelStatus, ServerMetadata, model_metadata_from_proto
from tritonpress_client.modes import Asynchronous, Blocking, both
from tritonpress_client.options import Options
from tritonpress_client.statistics import ModelStatistics, model_statistics_from_proto
from tritonpress_client.wire import NDArray


class _Connection:
    """What both connections do.

    Args:
        targets: `HOST:PORT` of Triton's gRPC endpoint; a list of them; `dns:///NAME:PORT`, whose addresses are all used
            (a Kubernetes headless service); or a gRPC target such as `unix:///run/triton.sock` or `xds:///NAME`.
        timeout_s: The deadline of each call in seconds, over all of its attempts.
        options: Security, retries, balancing, transport.

    Raises:
        InvalidInputError: A target is none, or `timeout_s` is not a finite number above 0.
    """

    transport_class: Any

    def __init__(self, targets: str | Sequence[str], *, timeout_s: float = 5.0, options: Options | None = None) -> None:
        self._calls = Calls(targets, self.transport_class(), timeout_s=timeout_s, options=options or Options())
        close_at_exit(self, self._calls)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}, timeout_s={self.timeout_s:g})"

    @property
    def address(self) -> str:
        """The servers' addresses as they were given, joined by commas."""
        return self._calls.address

    @property
    def timeout_s(self) -> float:
        """The deadline of each call in seconds."""
        return self._calls.timeout_s

    @both
    async def infer(
        self, model: str, inputs: Mapping[str, NDArray], outputs: Sequence[str] | None = None
    ) -> dict[str, NDArray]:
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
        request = wire.infer_request(model, outputs, self._calls.options.priority)
        wire.add_arrays(request, inputs)
        response = await self._calls.call("ModelInfer", request, model=model)
        try:
            return wire.arrays(response, outputs)
        except ValueError as exc:
            raise wire.malformed(exc, target=self.address, model=model) from exc

    @both
    async def model_metadata(self, model: str) -> ModelMetadata:
        """Returns the model's inputs, outputs and largest batch (two calls)."""
        return await model_metadata(self._calls, model, self._calls.deadline())

    @both
    async def statistics(self, model: str = "") -> list[ModelStatistics]:
        """Returns the counters of each version of the model, or of all models, since the server loaded it."""
        answer = await self._calls.call("ModelStatistics", service_pb2.ModelStatisticsRequest(name=model), model=model)
        return [model_statistics_from_proto(entry) for entry in answer.model_stats]

    @both
    async def ready(self, model: str = "") -> bool:
        """Returns whether the model answers requests; without a name, whether the server and all its models do."""
        if model:
            answer = await self._calls.call("ModelReady", service_pb2.ModelReadyRequest(name=model), model=model)
        else:
            answer = await self._calls.call("ServerReady", service_pb2.ServerReadyRequest())
        return bool(answer.ready)

    @both
    async def models(self) -> list[ModelStatus]:
        """Returns the models in the server's repository, those that are not ready too, by name and version."""
        index = await self._calls.call("RepositoryIndex", service_pb2.RepositoryIndexRequest())
        statuses = [ModelStatus(entry.name, entry.version, entry.state, entry.reason) for entry in index.models]
        return sorted(statuses, key=lambda status: (status.name, status.version))

    @both
    async def model_config(self, model: str) -> Any:
        """Returns the config that the model is served with (`tritonclient.grpc.model_config_pb2.ModelConfig`)."""
        return (await self._calls.call("ModelConfig", service_pb2.ModelConfigRequest(name=model), model=model)).config

    @both
    async def load_model(self, model: str, config: Any = None) -> None:
        """Returns once the model is loaded; what it was answers until then. One server is asked, once.

        Args:
            model: Its name.
            config: Stands in for the one in the repository (`tritonclient.grpc.model_config_pb2.ModelConfig`).

        Raises:
            InvalidInputError: The server was not started with `--model-control-mode=explicit`.
            ServerError: It cannot be loaded; Triton's reason is in the message.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        if config is not None:
            text = json_format.MessageToJson(config, preserving_proto_field_name=True)
            request.parameters["config"].string_param = text
        await self._calls.call("RepositoryModelLoad", request)

    @both
    async def unload_model(self, model: str) -> None:
        """Takes the model away, once its requests are answered; returns before that. One that is not there is no error.

        One server is asked, once.

        Raises:
            InvalidInputError: The server was not started with `--model-control-mode=explicit`.
        """
        await self._calls.call("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=model))

    @both
    async def server_metadata(self) -> ServerMetadata:
        """Returns the server's name and version."""
        answer = await self._calls.call("ServerMetadata", service_pb2.ServerMetadataRequest())
        return ServerMetadata(answer.name, answer.version)

    async def _close(self) -> None:
        await self._calls.close()


class Connection(_Connection, Blocking):
    __doc__ = _Connection.__doc__


class AsyncConnection(_Connection, Asynchronous):
    __doc__ = _Connection.__doc__


def close_at_exit(client: object, calls: Calls) -> None:
    """Closes a blocking client's channels when it is collected, or at exit, which they could keep from coming."""
    if isinstance(client, Blocking):
        weakref.finalize(client, _close, calls)


def _close(calls: Calls) -> None:
    Blocking.transport_class.run(calls.close())


async def model_metadata(calls: Calls, model: str, deadline: float) -> ModelMetadata:
    """Returns the model's inputs, outputs and largest batch."""
    asked = service_pb2.ModelMetadataRequest(name=model)
    metadata = await calls.call("ModelMetadata", asked, model=model, deadline=deadline)
    wanted = service_pb2.ModelConfigRequest(name=model)
    answer = await calls.call("ModelConfig", wanted, model=model, deadline=deadline)
    return model_metadata_from_proto(metadata, answer.config.max_batch_size)
