"""Spans whose trace Triton goes on with, metrics, and the log."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from at_once import AT_ONCE
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from served_models import Served, write_models
from tritonpress_client import AsyncRecommender, InvalidInputError, Options, Recommender, ServerUnreachableError
from tritonpress_client.metrics import Metrics
from tritonpress_client.tracing import Tracing
from tritonpress_server import TritonServer
from waiting import until

Servers = tuple[Served, Served]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Keeps the spans that end."""
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    """An observer whose spans go to the exporter."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An HTTP server that keeps what is posted to it, as a trace collector's; its address, and the bodies."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
    server.shutdown()
    server.server_close()


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """Returns the spans of that name."""
    return [span for span in exporter.get_finished_spans() if span.name == name]


def test_triton_goes_on_with_the_clients_trace(
    tracing: Tracing, exporter: InMemorySpanExporter, collector: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    url, bodies = collector
    settings = ["mode=opentelemetry", f"opentelemetry,url={url}", "opentelemetry,bsp_schedule_delay=100", "rate=1"]
    arguments = [word for setting in [*settings, "level=TIMESTAMPS"] for word in ("--trace-config", setting)]
    repository = write_models(tmp_path / "traced", "traced", instances=1)
    server = TritonServer(repository, log_path=tmp_path / "log", extra_args=arguments, settings=AT_ONCE)
    server.start()
    try:
        with Recommender(server.grpc_url, options=Options(observers=(tracing,))) as recommender:

            def sent() -> bool:
                # Triton may send a call's spans one after another.
                recommender.recommend("red lamp")
                span = named(exporter, "ModelInfer recommendation")[-1]
                trace_id = f"{span.get_span_context().trace_id:032x}".encode()
                return until(lambda: any(trace_id in body and b"recommendation" in body for body in bodies), seconds=5)

            # Of some 30 calls one is never seen: Triton 2.51 loses all that it was to send (docs/operations.md).
            assert until(sent), bodies
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.stop()


def test_a_span_says_what_was_called_and_how_it_ended(
    tracing: Tracing, exporter: InMemorySpanExporter, servers: Servers, unreachable_url: str
) -> None:
    options = Options(observers=(tracing,))
    with Recommender([unreachable_url, servers[0].url], options=options) as recommender:
        recommender.recommend("red lamp")
        with pytest.raises(InvalidInputError):
            recommender.recommend("bad")
    good, bad = named(exporter, "ModelInfer recommendation")
    assert good.attributes is not None
    assert good.attributes["server.address"] == servers[0].url
    assert good.attributes["rpc.method"] == "ModelInfer"
    assert bad.attributes is not None
    assert bad.attributes["error.type"] == "InvalidInputError"
    assert not bad.status.is_ok


def test_the_spans_of_many_belong_to_the_callers(
    tracing: Tracing, exporter: InMemorySpanExporter, servers: Servers
) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("caller")
    with (
        Recommender(servers[0].url, options=Options(observers=(tracing,))) as recommender,
        tracer.start_as_current_span("job") as job,
    ):
        recommender.recommend_many([str(number) for number in range(9)])
    spans = named(exporter, "ModelInfer recommendation")
    assert len(spans) == 3
    assert [span.parent and span.parent.span_id for span in spans] == [job.get_span_context().span_id] * 3


def test_metrics_count_calls_and_what_was_sent_again(servers: Servers, unreachable_url: str, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    options = Options(observers=(Metrics(registry),))

    async def ask() -> None:
        text = f"wait {tmp_path / 'never'}"
        async with AsyncRecommender(servers[0].url, timeout_s=60, options=options) as recommender:
            await asyncio.gather(*(recommender.recommend(str(number)) for number in range(5)))
            task = asyncio.create_task(recommender.recommend(text))
            assert await asyncio.to_thread(until, lambda: text in servers[0].executed())
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(ask())
    with (
        Recommender(unreachable_url, options=options) as recommender,
        pytest.raises(ServerUnreachableError) as caught,
    ):
        recommender.recommend("a")

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"tritonpress_client_{name}", {"model": "recommendation", **labels})

    assert value("calls_total", method="ModelInfer", outcome="ok") == 5
    assert value("calls_total", method="ModelInfer", outcome="CancelledError") == 1
    assert value("calls_total", method="ModelMetadata", outcome="ServerUnreachableError") == 1
    assert value("resent_total", method="ModelMetadata") == caught.value.attempts - 1 > 0
    assert value("call_seconds_count", method="ModelInfer") == 6
