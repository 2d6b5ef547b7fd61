"""How a connection behaves: security, retries, balancing, the transport. Values that check themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tritonpress_client.errors import InvalidInputError
from tritonpress_client.observers import Observer

Metadata = Mapping[str, str] | Callable[[], Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Tls:
    """TLS, and mutual TLS with a certificate and its key; PEM as bytes. Nothing of it shows in `repr`."""

    ca: bytes | None = field(default=None, repr=False)
    """The certificates that a server's must be signed by; None for the system's."""
    certificate: bytes | None = field(default=None, repr=False)
    """The client's own certificate chain, where the server asks for one."""
    key: bytes | None = field(default=None, repr=False)
    """The private key of `certificate`."""
    server_name: str | None = None
    """The name in the server's certificate, where it is not the address."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidInputError("`Tls.certificate` and `Tls.key` belong together; give both or neither")
        for name in ("ca", "certificate", "key"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, bytes) and b"-----BEGIN" in value):
                raise InvalidInputError(f"`Tls.{name}` must be PEM as bytes; read the file with Path.read_bytes()")


@dataclass(frozen=True, kw_only=True)
class Retries:
    """When a request is sent again: only what no server has answered, and never beyond the call's deadline.

    Inference changes nothing on a server, so that a lost connection may be retried as well as a refused one. Loading
    and unloading a model do: such an order goes to one server, once.
    """

    attempts: int = 3
    """The most times that a request is sent, hedges included."""
    backoff_s: float = 0.05
    """Before the second attempt at the same server, doubled for each further one; a random share of it is waited."""
    max_backoff_s: float = 1.0
    """The longest wait between two attempts."""
    budget: float = 0.2
    """Retries and hedges a call, on average: what keeps many callers' retries from burying a server."""
    budget_burst: int = 100
    """Retries that are free at first, so that the loss of a server with that many calls in flight loses none."""
    hedge_after: float | Literal["p95"] | None = None
    """Seconds after which an unanswered request is also sent to another server, the first answer wins; `p95`: of the
    answers seen. None: only after the share of the deadline that an attempt has."""

    def __post_init__(self) -> None:
        _at_least("Retries.attempts", self.attempts, 1)
        for name in ("backoff_s", "max_backoff_s", "budget", "budget_burst"):
            _at_least(f"Retries.{name}", getattr(self, name), 0)
        if self.hedge_after not in (None, "p95"):
            _above_zero("Retries.hedge_after", self.hedge_after, "or 'p95', or None")


@dataclass(frozen=True, kw_only=True)
class Balancing:
    """When a server is left out, and how it comes back. Servers are taken by the fewest requests outstanding."""

    failures: int = 5
    """Failures in a row (no connection, no answer in time) after which a server is left out: its circuit opens. A lost
    connection leaves it out at once where another server is there."""
    open_s: float = 0.5
    """How long it is left out, doubled each time that it is found unwell."""
    max_open_s: float = 5.0
    """The longest time that it is left out before it is asked again whether the model is ready."""
    return_s: float = 5.0
    """How long its share of the requests takes to grow back to a full one."""
    resolve_s: float = 30.0
    """How often a DNS name is looked up again."""

    def __post_init__(self) -> None:
        _at_least("Balancing.failures", self.failures, 1)
        for name in ("open_s", "max_open_s", "resolve_s"):
            _above_zero(f"Balancing.{name}", getattr(self, name))
        _at_least("Balancing.return_s", self.return_s, 0)


@dataclass(frozen=True, kw_only=True)
class SharedMemory:
    """Large inputs lie in memory that client and server share, in place of travelling in the request."""

    least_bytes: int = 1 << 18
    """Smaller inputs travel in the request, which is as fast."""
    most_bytes: int = 1 << 26
    """Of memory shared with each server; a request for which there is none left travels as it is."""

    def __post_init__(self) -> None:
        _at_least("SharedMemory.least_bytes", self.least_bytes, 1)
        _at_least("SharedMemory.most_bytes", self.most_bytes, self.least_bytes)


@dataclass(frozen=True, kw_only=True)
class Options:
    """All that can be set of a connection; the defaults are meant for production."""

    tls: Tls | None = None
    """None: no encryption."""
    metadata: Metadata | None = field(default=None, repr=False)
    """gRPC metadata sent with each attempt (`BearerToken`, or headers of Triton's restricted protocols); what is called
    for each attempt may give a fresh value. Sent in the clear only to this host, unless `clear_metadata`."""
    clear_metadata: bool = False
    """Sends `metadata` to other hosts without TLS too, where the network encrypts (a service mesh)."""
    retries: Retries = field(default_factory=Retries)
    balancing: Balancing = field(default_factory=Balancing)
    compression: Literal["gzip", "deflate"] | None = None
    """Of requests, and what the server is asked to answer with."""
    priority: int = 0
    """Of every request, 1 the highest, where the model has priorities (`serve.queue`); 0: what is its default."""
    shared_memory: SharedMemory | None = None
    """For servers of this host that map this process's memory; where they guard that, `metadata` has their token."""
    keepalive_s: float = 30.0
    """How often the connection is tested while a call waits; a dead one is then noticed before the deadline."""
    observers: tuple[Observer, ...] = ()
    """Told of each call (`tritonpress_client.tracing`, `tritonpress_client.metrics`, or your own)."""

    def __post_init__(self) -> None:
        if self.compression not in (None, "gzip", "deflate"):
            raise InvalidInputError(f"`compression` must be gzip, deflate or None, got {self.compression!r}")
        if isinstance(self.priority, bool) or not isinstance(self.priority, int) or not 0 <= self.priority < 2**32:
            raise InvalidInputError(f"`priority` must be an integer of at least 0, got {self.priority!r}")
        _above_zero("keepalive_s", self.keepalive_s)


def checked_timeout(timeout_s: Any) -> float:
    """Returns the deadline of a call, or refuses what is none."""
    _above_zero("timeout_s", timeout_s)
    return float(timeout_s)


def _above_zero(name: str, value: Any, otherwise: str = "") -> None:
    if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        rule = " ".join(filter(None, ["must be a finite number above 0", otherwise]))
        raise InvalidInputError(f"`{name}` {rule}, got {value!r}")


def _at_least(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value) and value >= least):
        raise InvalidInputError(f"`{name}` must be a number of at least {least}, got {value!r}")
