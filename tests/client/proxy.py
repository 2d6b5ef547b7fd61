"""A TCP proxy in front of a real server, which fails as networks and servers do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Literal

Fault = Literal["none", "hang", "slow", "reset", "half_open", "garbage", "refuse"]

GARBAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" + bytes(range(256))


class Proxy:
    """Passes bytes on, or does not; a context manager.

    Attributes:
        url: `HOST:PORT` where it listens.
        fault: What it does: `hang` keeps the server's bytes back, on open connections too; `slow` gives each piece
            `delay_s` later; `reset` ends connections with RST after the client's next bytes; `half_open` takes
            connections and never answers; `garbage` answers new connections with what is not HTTP/2; `refuse` closes
            new connections at once.
        connections: How many it has taken.
    """

    def __init__(self, upstream: str, *, delay_s: float = 0.2) -> None:
        host, _, port = upstream.rpartition(":")
        self.fault: Fault = "none"
        self.connections = 0
        self._upstream = (host, int(port))
        self._delay_s = delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for opened in (self._listener, *self._sockets):
            close(opened)

    def reset_all(self) -> None:
        """Ends every open connection with RST."""
        opened, self._sockets = self._sockets, []
        for each in opened:
            reset(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(client)
            if self.fault == "refuse":
                reset(client)
            elif self.fault == "garbage":
                client.sendall(GARBAGE)
                close(client)
            elif self.fault != "half_open":
                server = socket.create_connection(self._upstream)
                self._sockets.append(server)
                for source, sink, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass, args=(source, sink, answers), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(65536):
                if self.fault == "reset" and not answers:
                    reset(source)
                    break
                if self.fault == "slow" and answers:
                    time.sleep(self._delay_s)
                while self.fault == "hang" and answers:
                    time.sleep(0.01)
                sink.sendall(data)
        except OSError:
            pass
        close(sink)


def reset(opened: socket.socket) -> None:
    """Closes with RST instead of FIN."""
    with contextlib.suppress(OSError):
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    close(opened)


def close(opened: socket.socket) -> None:
    """Closes, and wakes whoever waits for it."""
    with contextlib.suppress(OSError):
        if not opened.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER):
            opened.shutdown(socket.SHUT_RDWR)
    opened.close()
