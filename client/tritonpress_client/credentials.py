"""Tokens that are refreshed, channel credentials, and where a secret may travel."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc

from tritonpress_client.errors import InvalidInputError
from tritonpress_client.options import Options, Tls

_THIS_HOST = re.compile(r"(unix(-abstract)?:.*|(127\.\d+\.\d+\.\d+|localhost|\[::1\]):\d+)")


class BearerToken:
    """`Options.metadata` that sends `authorization: Bearer TOKEN`, fetched anew before it is too old.

    Args:
        fetch: Returns the token; called in the thread that makes a call, so it should have a timeout of its own.
        lifetime_s: How long a token is used. When a server says that it is not valid, the next call fetches another.
    """

    def __init__(self, fetch: Callable[[], str], *, lifetime_s: float = 300.0) -> None:
        self._fetch = fetch
        self._lifetime_s = lifetime_s
        self._lock = threading.Lock()
        self._token = ""
        self._until = 0.0

    def __call__(self) -> Mapping[str, str]:
        with self._lock:
            if time.monotonic() >= self._until:
                self._token = self._fetch()
                self._until = time.monotonic() + self._lifetime_s
            return {"authorization": f"Bearer {self._token}"}

    def expire(self) -> None:
        """Lets the next call fetch a token, whatever this one's age."""
        self._until = 0.0

    def __repr__(self) -> str:
        return f"BearerToken(lifetime_s={self._lifetime_s:g})"


def channel_credentials(tls: Tls | None) -> grpc.ChannelCredentials | None:
    """Returns gRPC's form of the TLS settings; None where there is no TLS."""
    return None if tls is None else grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)


def check_secrecy(targets: Sequence[str], options: Options) -> None:
    """Refuses metadata that would leave this host in the clear.

    Raises:
        InvalidInputError: Metadata is given, TLS is not, and a target is elsewhere.
    """
    if options.metadata is None or options.tls is not None or options.clear_metadata:
        return
    for target in targets:
        if not on_this_host(target):
            raise InvalidInputError(
                f"`metadata` would go to {target} in the clear; set `tls`, or `clear_metadata` if the network encrypts",
                target=target,
            )


def on_this_host(target: str) -> bool:
    """Returns whether an address is this host's by what it says."""
    return _THIS_HOST.fullmatch(target) is not None


def sent_metadata(options: Options, context: Mapping[str, str]) -> list[tuple[str, str]] | None:
    """Returns the metadata of an attempt; None where there is none."""
    given: Any = options.metadata
    values = given() if callable(given) else given
    pairs = [*(values or {}).items(), *context.items()]
    return [(name.lower(), value) for name, value in pairs] or None


def expire_metadata(options: Options) -> bool:
    """Returns whether another value can be had for the next attempt, after a server has denied access."""
    expire = getattr(options.metadata, "expire", None)
    if expire is not None:
        expire()
    return expire is not None
