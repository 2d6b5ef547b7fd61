"""What the client tells of itself: an `Observer` is told of each call; the log always is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

LOGGER = logging.getLogger("tritonpress_client")
LOGGER.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class CallEnd:
    """How a call ended."""

    method: str
    """gRPC's method, `ModelInfer` or another."""
    model: str
    """The model's name; empty for calls about the server."""
    target: str
    """The server that gave the answer or the last error."""
    duration_s: float
    attempts: int
    """How many times the request was sent."""
    error: BaseException | None
    """What is raised, a cancellation too; or None."""


class Observer(Protocol):
    """Is told of each call. It must not raise, and returns soon: calls wait for it."""

    def started(self, method: str, model: str) -> tuple[Any, Mapping[str, str]]:
        """Returns a handle for `ended`, and gRPC metadata to send along (a trace's context)."""

    def ended(self, handle: Any, end: CallEnd) -> None:
        """Is told how the call ended."""


def log_event(level: int, event: str, **fields: object) -> None:
    """Logs an event with its fields, which a handler finds in `record.tritonpress`; never texts or secrets."""
    if LOGGER.isEnabledFor(level):
        words = " ".join(f"{name}={value}" for name, value in fields.items())
        LOGGER.log(level, "%s %s", event, words, extra={"tritonpress": {"event": event, **fields}})
