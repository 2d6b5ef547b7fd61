"""Asking a running Triton over its HTTP endpoint, with the standard library alone."""

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping

TIMEOUT_S = 2.0


def is_ready(address: str, *, http_port: int, metrics_port: int | None, server_id: str) -> bool:
    """Whether the Triton with this id says that it has loaded what it loads first, and its endpoints are open.

    Triton opens gRPC, then HTTP, then metrics; None says that there are no metrics.
    """
    try:
        with contextlib.closing(http.client.HTTPConnection(address, http_port, timeout=TIMEOUT_S)) as connection:
            if _ask(connection, "GET", "/v2/health/ready")[0] != http.HTTPStatus.OK:
                return False
            # Another server may have taken the port between the choice and our Triton's bind.
            if json.loads(_ask(connection, "GET", "/v2")[1]).get("name") != server_id:
                return False
        if metrics_port is not None:
            socket.create_connection((address, metrics_port), timeout=TIMEOUT_S).close()
    except (OSError, http.client.HTTPException, json.JSONDecodeError):
        return False
    return True


def ready_models(address: str, *, http_port: int, headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name and version of each model that answers, sorted.

    Args:
        address: Of the endpoint.
        http_port: Of the endpoint.
        headers: What the server asks of those who want to know.

    Raises:
        OSError: Nobody listens there.
        http.client.HTTPException: It ends while it answers.
    """
    with contextlib.closing(http.client.HTTPConnection(address, http_port, timeout=TIMEOUT_S)) as connection:
        _, body = _ask(connection, "POST", "/v2/repository/index", body='{"ready": true}', headers=headers)
    return sorted((model["name"], model.get("version", "")) for model in json.loads(body))


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    *,
    body: str = "",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    connection.request(method, path, body=body, headers=dict(headers or {}))
    response = connection.getresponse()
    return response.status, response.read()
