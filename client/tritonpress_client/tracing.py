"""OpenTelemetry: a span a call, and its context handed to Triton, whose own spans then belong to the same trace.

    options = Options(observers=(Tracing(),))

Needs `pip install 'tritonpress[telemetry]'`. Triton takes part with `--trace-config mode=opentelemetry`.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from tritonpress_client.observers import CallEnd


class Tracing:
    """An observer that makes a client span of each call, after OpenTelemetry's conventions for RPC.

    Args:
        provider: Where the spans go; OpenTelemetry's global one by default.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("tritonpress_client", tracer_provider=provider)

    def started(self, method: str, model: str) -> tuple[Span, Mapping[str, str]]:
        """Starts a span under the current one."""
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": "inference.GRPCInferenceService",
            "rpc.method": method,
            "tritonpress.model": model,
        }
        span = self._tracer.start_span(f"{method} {model}".strip(), kind=SpanKind.CLIENT, attributes=attributes)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, context=trace.set_span_in_context(span))
        return span, carrier

    def ended(self, handle: Span, end: CallEnd) -> None:
        """Ends the span."""
        handle.set_attribute("server.address", end.target)
        handle.set_attribute("tritonpress.attempts", end.attempts)
        if end.error is not None:
            handle.set_attribute("error.type", type(end.error).__name__)
            handle.set_status(Status(StatusCode.ERROR, str(end.error)))
        handle.end()
