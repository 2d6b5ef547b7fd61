"""Requests to a served model that cost the load generator as little as can be."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import grpc
from tritonclient.grpc import service_pb2

from tritonpress_generator.bench.texts import Request

SERVICE = "/inference.GRPCInferenceService"
_CHANNELS = 4


class Messages:
    """Requests made before they are needed, over a few channels; answers are not looked into.

    What a load generator costs on the server's own cores would otherwise count as the server's.
    """

    def __init__(self, url: str, model: str, requests: Sequence[Request]) -> None:
        """Connects."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.insecure_channel(url, options=options) for _ in range(_CHANNELS)]
        self._calls = [channel.unary_unary(f"{SERVICE}/ModelInfer") for channel in self._channels]
        self._messages = [message(model, request) for request in requests]

    def __enter__(self) -> Messages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            channel.close()

    def live(self) -> object:
        """Returns the answer to a call that does nothing: what the road to the server costs alone."""
        return self._channels[0].unary_unary(f"{SERVICE}/ServerLive")(b"", timeout=60)

    def __call__(self, caller: int, turn: int) -> object:
        """Returns the answer to the request `turn` as it came."""
        return self._calls[caller % _CHANNELS](self._messages[turn % len(self._messages)], timeout=60)


def message(model: str, request: Request) -> bytes:
    """Returns `request` serialised, with all public inputs."""
    infer = service_pb2.ModelInferRequest(model_name=model)
    for name, texts in request.items():
        tensor = infer.inputs.add(name=name, datatype="BYTES")
        tensor.shape.extend([len(texts), 1])
        infer.raw_input_contents.append(b"".join(len(text).to_bytes(4, "little") + text for text in texts))
    serialized: bytes = infer.SerializeToString()
    return serialized


def load(url: str, model: str) -> None:
    """Has the server load `model`, with the steps that it needs."""
    request = service_pb2.RepositoryModelLoadRequest(model_name=model)
    with grpc.insecure_channel(url) as channel:
        channel.unary_unary(f"{SERVICE}/RepositoryModelLoad")(request.SerializeToString(), timeout=120)
