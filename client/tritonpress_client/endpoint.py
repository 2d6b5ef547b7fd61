"""One server: its channel, what it has to do, and whether it takes requests."""

from __future__ import annotations

import os
import threading
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from tritonpress_client.credentials import channel_credentials
from tritonpress_client.errors import ServerUnreachableError
from tritonpress_client.options import Options
from tritonpress_client.transport import Transport

_COMPRESSION = {None: None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
_DESCRIPTORS = 16
"""That gRPC may want for its first channel: its event loop, and a socket a name's address."""
_abandoned: list[Any] = []


class Endpoint:
    """A server at an address. Its counts are the balancer's to change, under the balancer's lock.

    Attributes:
        target: gRPC's address.
        outstanding: Requests without an answer.
        failures: Failures in a row.
        openings: How often in a row it was left out; 0 while it takes requests.
        open_until: Until when it is left out; 0 while it takes requests.
        probing: Whether a request is on its way that decides whether it comes back.
        returned: When it came back; 0 for one that was never away.
        missing: Models that it does not serve, and until when that is believed.
    """

    def __init__(self, target: str, host: str, transport: Transport, options: Options) -> None:
        self.target = target
        self.outstanding = 0
        self.failures = 0
        self.openings = 0
        self.open_until = 0.0
        self.probing = False
        self.returned = 0.0
        self.missing: dict[str, float] = {}
        self._host = host
        self._transport = transport
        self._options = options
        self._channel: Any = None
        self._stub: Any = None
        self._owner: object = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Endpoint({self.target!r}, outstanding={self.outstanding}, open={self.open_until > 0})"

    def method(self, name: str) -> Any:
        """Returns gRPC's callable; connects first, where there is no channel yet, or it is another event loop's."""
        stub, owner = self._stub, self._transport.owner()
        if stub is None or self._owner is not owner:
            with self._lock:
                if self._stub is None or self._owner is not owner:
                    self._connect(owner)
                stub = self._stub
        return getattr(stub, name)

    def forget_channel(self) -> Any:
        """Returns the channel, to be closed, and goes on without one."""
        channel, self._channel, self._stub = self._channel, None, None
        return channel

    def reset_after_fork(self) -> None:
        """Goes on in a forked process: with new locks, and without the parent's channel, which stays as it is."""
        self._lock = threading.Lock()
        # Its sockets are the parent's too: closing it here would end the parent's calls.
        _abandoned.append(self.forget_channel())
        self.outstanding, self.probing = 0, False

    def _connect(self, owner: object) -> None:
        self._check_descriptors()
        credentials = channel_credentials(self._options.tls)
        compression = _COMPRESSION[self._options.compression]
        self._channel = self._transport.channel(self.target, credentials, self._arguments(), compression)
        self._owner = owner
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def _check_descriptors(self) -> None:
        """Says of a process without file descriptors what gRPC would end it for, by abort().

        Raises:
            ServerUnreachableError: There are too few.
        """
        opened: list[int] = []
        try:
            for _ in range(_DESCRIPTORS):
                opened.append(os.open(os.devnull, os.O_RDONLY))
        except OSError as exc:
            raise ServerUnreachableError(
                f"a connection to {self.target} needs {_DESCRIPTORS} file descriptors, this process has fewer left "
                f"({exc.strerror}); close some, or raise its limit (ulimit -n)",
                target=self.target,
            ) from exc
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _arguments(self) -> list[tuple[str, Any]]:
        """Returns the channel's arguments."""
        keepalive_ms = int(self._options.keepalive_s * 1000)
        tls = self._options.tls
        name = tls.server_name if tls is not None and tls.server_name else self._host
        override = [("grpc.ssl_target_name_override", name)] if tls is not None and name else []
        return [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            # Retries are ours, under one budget, and to another server.
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            # How long a connection may take to be made, too.
            ("grpc.min_reconnect_backoff_ms", 2000),
            ("grpc.max_reconnect_backoff_ms", 2000),
            # Only while calls wait, and no more than a server permits without data.
            ("grpc.keepalive_time_ms", keepalive_ms),
            ("grpc.keepalive_timeout_ms", min(keepalive_ms, 10_000)),
            # A subchannel of the process-wide pool could be one that a parent process still uses.
            ("grpc.use_local_subchannel_pool", 1),
            *override,
        ]
