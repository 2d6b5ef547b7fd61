"""Requests as they travel: encoded once, before the load, by the very messages that the client sends.

The load generators send bytes over gRPC themselves, since encoding each request anew would cost them as much as sending
it. What a model speaks is checked through `tritonpress_client` before a run, and the bytes against it by a test.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from tritonclient.grpc import service_pb2
from tritonpress_client import Options
from tritonpress_client.credentials import channel_credentials
from tritonpress_client.transport import Transport

METHOD = "/inference.GRPCInferenceService/ModelInfer"
# One message may hold more answers than gRPC's default of 4 MiB.
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def channel(transport: Transport, url: str, options: Options) -> Any:
    """Returns a channel to the server, by TLS if that is asked for."""
    return transport.channel(url, channel_credentials(options.tls), CHANNEL_OPTIONS, None)


def encoded_request(model: str, inputs: Mapping[str, str], outputs: Sequence[str]) -> bytes:
    """Returns a `ModelInferRequest` of one text an input, BYTES (1, 1), that asks for those outputs."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, text in inputs.items():
        request.inputs.add(name=name, datatype="BYTES", shape=[1, 1])
        content = text.encode("utf-8", "surrogatepass")
        request.raw_input_contents.append(struct.pack("<I", len(content)) + content)
    for name in outputs:
        request.outputs.add(name=name)
    return bytes(request.SerializeToString())


def error_text(code: str, details: str | None) -> str:
    """Returns a failed call's status and reason in one line, for counting."""
    return " ".join(f"{code}: {details or 'no reason given'}".split())[:300]
