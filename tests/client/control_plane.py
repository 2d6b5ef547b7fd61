"""An xDS control plane that knows one service: as much of Envoy's protocol as gRPC's clients ask for.

The messages are written field by field (envoyproxy/data-plane-api gives the numbers): the packages that have them bring
top-level names of others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

Value = int | str | bytes
_TYPES = "type.googleapis.com/envoy"
_LISTENER, _CLUSTER = f"{_TYPES}.config.listener.v3.Listener", f"{_TYPES}.config.cluster.v3.Cluster"
_ENDPOINTS = f"{_TYPES}.config.endpoint.v3.ClusterLoadAssignment"
_HTTP = f"{_TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = f"{_TYPES}.extensions.filters.http.router.v3.Router"
_DISCOVERY = "envoy.service.discovery.v3.AggregatedDiscoveryService"


class ControlPlane:
    """Tells whoever asks for `service` its servers; a context manager.

    Attributes:
        bootstrap: What gRPC's `GRPC_XDS_BOOTSTRAP_CONFIG` must be.
        refused: What a client has found wrong with an answer.
    """

    def __init__(self, service: str, urls: Sequence[str]) -> None:
        self.refused: list[bytes] = []
        self._resources = _resources(service, urls)
        self._server = grpc.server(ThreadPoolExecutor(4))
        stream = grpc.stream_stream_rpc_method_handler(self._discovered)
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(_DISCOVERY, {"StreamAggregatedResources": stream})]
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        plane = {"server_uri": f"127.0.0.1:{port}", "channel_creds": [{"type": "insecure"}]}
        node = {"id": "test", "locality": {"region": "here"}}
        self.bootstrap = json.dumps({"xds_servers": [{**plane, "server_features": ["xds_v3"]}], "node": node})

    def __enter__(self) -> ControlPlane:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0)

    def _discovered(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            asked = {field.field_number: field.data for field in UnknownFieldSet(Empty.FromString(request))}
            if 6 in asked:
                self.refused.append(asked[6])
            if 5 not in asked:  # else it only says that it has got an answer
                type_url = asked[4].decode()
                resource = _any(type_url, self._resources[type_url])
                yield _message((1, "1"), (2, resource), (4, type_url), (5, "1"))


def _resources(service: str, urls: Sequence[str]) -> dict[str, bytes]:
    """Returns by its type what is known: a listener whose route leads to a cluster of all servers, by turns."""
    route = _message((1, _message((1, ""))), (2, _message((1, "cluster"))))
    host = _message((1, "host"), (2, "*"), (3, route))
    routes = _message((1, "routes"), (2, host))
    manager = _message((4, routes), (5, _message((1, "router"), (4, _any(_ROUTER, b"")))))
    by_discovery = _message((1, _message((3, b""))))
    endpoints = []
    for url in urls:
        address, _, port = url.rpartition(":")
        socket_address = _message((1, _message((2, address), (3, int(port)))))
        endpoints.append((2, _message((1, _message((1, socket_address))))))
    locality = _message((1, _message((1, "here"))), *endpoints, (3, _message((1, 1))))
    return {
        _LISTENER: _message((1, service), (19, _message((1, _any(_HTTP, manager))))),
        _CLUSTER: _message((1, "cluster"), (2, 3), (3, by_discovery), (6, 0)),
        _ENDPOINTS: _message((1, "cluster"), (2, locality)),
    }


def _any(type_url: str, value: bytes) -> bytes:
    return _message((1, type_url), (2, value))


def _message(*fields: tuple[int, Value]) -> bytes:
    """Returns protobuf's bytes of fields by their numbers: integers, texts, and messages as bytes."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(_varint(number << 3) + _varint(value))
        else:
            content = value.encode() if isinstance(value, str) else value
            parts.append(_varint(number << 3 | 2) + _varint(len(content)) + content)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
