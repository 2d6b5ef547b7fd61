"""Tokens that are refreshed, channel credentials, and where a secret may travel."""

from __future__ import annotations

import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc

from tritonpress_client.errors import AccessDeniedError, InvalidInputError, TritonpressError
from tritonpress_client.options import Options, Tls

_NAME, _VALUE = re.compile(r"[0-9a-z_.-]+"), re.compile(r"[\x20-\x7e]*")
_THIS_HOST = re.compile(r"(unix(-abstract)?:.*|(127\.\d+\.\d+\.\d+|localhost|\[::1\]):\d+)")
_all_tokens: weakref.WeakSet[BearerToken] = weakref.WeakSet()


class BearerToken:
    """`Options.metadata` that sends `authorization: Bearer TOKEN`, fetched anew before it is too old.

    Args:
        fetch: Returns the token, perhaps with white space around it; called in the thread that makes a call, whose
            deadline goes on meanwhile, so it should have a timeout of its own.
        lifetime_s: How long a token is used. When a server says that it is not valid, the next call fetches another.
    """

    def __init__(self, fetch: Callable[[], str], *, lifetime_s: float = 300.0) -> None:
        self._fetch = fetch
        self._lifetime_s = lifetime_s
        self._lock = threading.Lock()
        self._token = ""
        self._until = 0.0
        _all_tokens.add(self)

    def __call__(self) -> Mapping[str, str]:
        with self._lock:
            if time.monotonic() >= self._until:
                self._token = self._fetch().strip()
                self._until = time.monotonic() + self._lifetime_s
            return {"authorization": f"Bearer {self._token}"}

    def expire(self) -> None:
        """Lets the next call fetch a token, whatever this one's age."""
        self._until = 0.0

    def reset_after_fork(self) -> None:
        """Goes on in a forked process, where the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()

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
    """Returns the metadata of an attempt; None where there is none.

    Args:
        options: The connection's.
        context: What observers send along.

    Raises:
        AccessDeniedError: What gives the metadata has raised something.
        InvalidInputError: gRPC would refuse it, in words that hold the secret.
    """
    given: Any = options.metadata
    try:
        values = given() if callable(given) else given
        pairs = [(name.lower(), value) for name, value in [*(values or {}).items(), *context.items()]]
    except TritonpressError:
        raise
    except Exception as exc:
        # The user's own code may raise anything; its words may hold a secret.
        said = f"`Options.metadata` raised {type(exc).__name__}, and gave no headers; correct what the cause says"
        raise AccessDeniedError(said) from exc
    for name, value in pairs:
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise InvalidInputError(f"names in `metadata` must be of letters, digits, '-', '_' and '.', got {name!r}")
        is_bytes = name.endswith("-bin")
        if not (isinstance(value, bytes) if is_bytes else isinstance(value, str) and _VALUE.fullmatch(value)):
            rule = "bytes" if is_bytes else "a str of printable ASCII"
            raise InvalidInputError(f"`metadata` must give {name!r} as {rule}; correct the value")
    return pairs or None


def expire_metadata(options: Options) -> bool:
    """Returns whether another value can be had for the next attempt, after a server has denied access.

    Raises:
        AccessDeniedError: What gives the metadata has raised something.
    """
    expire = getattr(options.metadata, "expire", None)
    if expire is None:
        return False
    try:
        expire()
    except TritonpressError:
        raise
    except Exception as exc:
        # As above.
        said = f"`Options.metadata.expire` raised {type(exc).__name__}, and gave no way on; correct what the cause says"
        raise AccessDeniedError(said) from exc
    return True


def _after_fork() -> None:
    for token in _all_tokens:
        token.reset_after_fork()


os.register_at_fork(after_in_child=_after_fork)
