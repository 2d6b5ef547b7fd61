"""Choosing and checking the ports of the three endpoints."""

import errno
import random
import socket
from collections.abc import Mapping

from tritonpress_server.errors import PortInUseError

# Below Linux's ephemeral range, so that no outgoing connection takes a port between the choice and Triton's bind.
CHOICES = range(20000, 32768)
MAX_TRIES = 200


def choose_ports(host: str, wanted: Mapping[str, int | None]) -> dict[str, int]:
    """A port for each endpoint (`grpc`, `http`, `metrics`): the one that was asked for, or a free one where it is None.

    Raises:
        PortInUseError: A port that was asked for is taken, forbidden, out of range, or given twice, or `host` is no
            address of this machine.
    """
    _check_host(host)
    ports: dict[str, int] = {}
    for endpoint, port in wanted.items():
        if port is None:
            continue
        if not 1 <= port <= 65535:
            raise PortInUseError(
                f"{endpoint}_port must be in [1, 65535], got {port}; leave it out to have a free one chosen"
            )
        if port in ports.values():
            raise PortInUseError(
                f"{endpoint}_port must differ from the other ports, got {port} twice; give each endpoint its own"
            )
        _check(host, endpoint, port)
        ports[endpoint] = port
    for endpoint, port in wanted.items():
        if port is None:
            ports[endpoint] = _free_port(host, taken=set(ports.values()))
    return ports


def _check_host(host: str) -> None:
    try:
        _bind(host, 0)
    except OSError as error:
        raise PortInUseError(
            f"host {host!r} must be an address of this machine: {error.strerror}; use 127.0.0.1 or 0.0.0.0"
        ) from error


def _check(host: str, endpoint: str, port: int) -> None:
    try:
        _bind(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"{endpoint}_port {port} on {host} is in use by another process; stop that one or choose another port"
            ) from error
        if error.errno == errno.EACCES:
            raise PortInUseError(
                f"{endpoint}_port {port} on {host} needs privileges that this user lacks; choose one from 1024 up"
            ) from error
        raise


def _free_port(host: str, *, taken: set[int]) -> int:
    for port in random.sample(CHOICES, MAX_TRIES):
        if port not in taken:
            try:
                _check(host, "chosen", port)
            except PortInUseError:
                continue
            return port
    raise PortInUseError(
        f"no free port on {host} in [{CHOICES.start}, {CHOICES.stop}) after {MAX_TRIES} tries; give the ports"
    )


def _bind(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As Triton does it: connections in TIME_WAIT do not keep a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        # Two binds with SO_REUSEADDR may share a port that nobody listens on yet.
        probe.listen()
