"""Prometheus: how many calls, how long they took, how often they were sent again.

    options = Options(observers=(Metrics(),))

Needs `pip install 'tritonpress[telemetry]'`.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from tritonpress_client.observers import CallEnd

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """An observer that counts calls by method, model and outcome (`ok`, or the error's class); one for all clients.

    Args:
        registry: Where the metrics are registered; Prometheus' global one by default.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        labels = ("method", "model")
        self._calls = Counter("tritonpress_client_calls", "Calls", (*labels, "outcome"), registry=registry)
        self._resent = Counter("tritonpress_client_resent", "Requests sent again, or hedged", labels, registry=registry)
        self._seconds = Histogram(
            "tritonpress_client_call_seconds", "Duration of calls", labels, registry=registry, buckets=_BUCKETS_S
        )

    def started(self, method: str, model: str) -> tuple[None, Mapping[str, str]]:
        """Does nothing yet."""
        return None, {}

    def ended(self, handle: None, end: CallEnd) -> None:
        """Counts the call."""
        outcome = "ok" if end.error is None else type(end.error).__name__
        self._calls.labels(end.method, end.model, outcome).inc()
        self._seconds.labels(end.method, end.model).observe(end.duration_s)
        if end.attempts > 1:
            self._resent.labels(end.method, end.model).inc(end.attempts - 1)
