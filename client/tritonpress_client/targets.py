"""The servers' addresses: a list of them, or a DNS name with many behind it, looked up again from time to time."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tritonpress_client.balancer import Balancer
from tritonpress_client.endpoint import Endpoint
from tritonpress_client.errors import InvalidInputError, ServerUnreachableError
from tritonpress_client.observers import log_event
from tritonpress_client.options import Options
from tritonpress_client.transport import Transport

_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\],]+):(?P<port>\d{1,5})")
_DNS = re.compile(r"dns:(///)?(?P<host>[^\s:/\[\],]+):(?P<port>\d{1,5})")
# gRPC's own: with xds it balances by itself.
_GRPC_SCHEMES = ("unix:", "unix-abstract:", "ipv4:", "ipv6:", "xds:")
_LOOKUP_S = 10.0
"""That a lookup in the background may take."""


class Targets:
    """Keeps the balancer's servers up to date.

    Attributes:
        given: The addresses as they were given.
    """

    def __init__(self, targets: Any, balancer: Balancer, transport: Transport, options: Options) -> None:
        self.given = _checked(targets)
        self._balancer = balancer
        self._transport = transport
        self._options = options
        self._names = {target: match for target in self.given if (match := _DNS.fullmatch(target))}
        self._plain = {target: "" for target in self.given if target not in self._names}
        self._found: dict[str, list[str]] = {}
        self._next_s = 0.0
        self._take(self._plain)

    async def resolved(self, deadline: float) -> None:
        """Returns once there are servers; looks the names up anew in the background when it is time.

        Raises:
            ServerUnreachableError: None of the names can be resolved within the deadline.
        """
        if not self._names:
            return
        now = time.monotonic()
        if not self._balancer.endpoints:
            await self._resolve(deadline)
        elif self._next_s <= now:
            # Nobody else begins before it has ended; where that is never, in a forked process, its time ends.
            self._next_s = now + _LOOKUP_S
            self._transport.background(lambda: self._resolve(time.monotonic() + _LOOKUP_S))

    async def _resolve(self, deadline: float) -> None:
        """Looks the names up; one that cannot be resolved keeps the servers that were found before.

        Raises:
            ServerUnreachableError: No server was ever found.
        """
        failures: list[ServerUnreachableError] = []
        try:
            for left, target in zip(range(len(self._names), 0, -1), self._names, strict=True):
                # One that hangs leaves time for the others, and for the request to what is found.
                now, others = time.monotonic(), left - 1 + bool(self._found)
                try:
                    self._found[target] = await self._addresses(target, now + (deadline - now) / (1 + others))
                except ServerUnreachableError as exc:
                    failures.append(exc)
        finally:
            # After a failure too: each call would look again.
            self._next_s = time.monotonic() + self._options.balancing.resolve_s
        hosts = dict(self._plain)
        for target in self._names:
            for address in self._found.get(target, ()):
                hosts.setdefault(address, self._names[target]["host"])
        if not hosts:
            raise failures[0]
        for failure in failures:
            log_event(logging.WARNING, "dns_failed", reason=failure)
        # A server that is gone keeps its channel for the answers that are still to come; it is closed when collected.
        self._take(hosts)

    async def _addresses(self, target: str, deadline: float) -> list[str]:
        """Returns the HOST:PORT of all that a name stands for."""
        host, port = self._names[target]["host"], int(self._names[target]["port"])
        left_s = max(0.001, deadline - time.monotonic())
        try:
            entries = await self._transport.in_thread(
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), left_s
            )
        except TimeoutError:
            raise self._unresolved(target, f"no answer within {left_s:.1f} s") from None
        except OSError as exc:
            raise self._unresolved(target, exc.strerror or str(exc)) from exc
        except UnicodeError as exc:
            raise self._unresolved(target, str(exc)) from exc
        addresses = sorted({str(entry[4][0]) for entry in entries})
        return [f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address in addresses]

    def _take(self, hosts: Mapping[str, str]) -> None:
        """Has these servers from now on; with TLS each is held to the name behind which it was found."""
        self._balancer.replace(hosts, lambda target: Endpoint(target, hosts[target], self._transport, self._options))

    def _unresolved(self, target: str, why: str) -> ServerUnreachableError:
        return ServerUnreachableError(f"{target!r} cannot be resolved: {why}; correct the name", target=target)


def _checked(targets: Any) -> tuple[str, ...]:
    """Returns the addresses, or refuses what is none."""
    listed = [targets] if isinstance(targets, str) else targets
    if not isinstance(listed, Sequence) or isinstance(listed, bytes):
        raise InvalidInputError(f"`targets` must be HOST:PORT or a list of them, got {targets!r}")
    if not listed:
        raise InvalidInputError("`targets` is empty; give at least one HOST:PORT of Triton's gRPC endpoint")
    for target in listed:
        if not isinstance(target, str) or not (
            target.startswith(_GRPC_SCHEMES) or _DNS.fullmatch(target) or _port(_HOST_AND_PORT.fullmatch(target))
        ):
            rule = "must be HOST:PORT of Triton's gRPC endpoint, or dns:///NAME:PORT, without http://"
            raise InvalidInputError(f"`targets` {rule}, got {target!r}")
    return tuple(dict.fromkeys(listed))


def _port(match: re.Match[str] | None) -> bool:
    return match is not None and 0 < int(match["port"]) < 65536
