"""Traces and metrics leave over real OTLP, and shutdown is bounded."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
from aiohttp import web

from dispatcher.telemetry import AttemptTrace, ExportPlan, current_traceparent, start_telemetry
from dispatcher.telemetry.catalog import DELIVERIES, SCHEMA_URL
from tests.support.otlp import OtlpSink, attributes_of

ATTEMPT = AttemptTrace("acme", "orders", 1, "evt_1", "order.created", 1, "http://127.0.0.1:1/", 2)


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpSink]:
    with OtlpSink() as running:
        for name, value in running.environ.items():
            monkeypatch.setenv(name, value)
        yield running


async def test_the_trace_from_publisher_to_webhook_arrives_over_otlp_grpc(sink: OtlpSink) -> None:
    telemetry = start_telemetry(ExportPlan.load(sink.environ), version="0.1", instance_id="i-1")
    with telemetry.tracing.server_span("webhooks.v1.PublisherService/Publish", None) as call:
        call.ended("OK")
        stored = current_traceparent()
    with telemetry.tracing.delivery_span(lambda: ATTEMPT, stored, continue_trace=False) as attempt:
        attempt.answered(200, outcome="success")
    await asyncio.to_thread(sink.wait_for, lambda s: len(s.spans) == 2)
    server, client = sorted(sink.spans, key=lambda span: span.start_time_unix_nano)
    assert server.name == "webhooks.v1.PublisherService/Publish"
    assert [(link.trace_id, link.span_id) for link in client.links] == [(server.trace_id, server.span_id)]
    assert client.trace_id != server.trace_id
    assert attributes_of(client)["messaging.message.id"] == "evt_1"
    resource = attributes_of(sink.resource_spans[0].resource)
    assert (resource["service.name"], resource["service.instance.id"]) == ("dispatcher", "i-1")
    assert sink.resource_spans[0].scope_spans[0].schema_url == SCHEMA_URL
    assert sink.resource_spans[0].schema_url == SCHEMA_URL
    assert await telemetry.shutdown(5)


async def test_spans_of_calls_and_attempts_are_of_one_scope_and_batch(
    sink: OtlpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    telemetry = start_telemetry(ExportPlan.load(sink.environ), version="0.1", instance_id="i-1")
    with telemetry.tracing.server_span("a.B/C", None):
        pass
    with telemetry.tracing.delivery_span(lambda: ATTEMPT, None, continue_trace=False) as attempt:
        attempt.failed("timeout", outcome="retry")
    assert await telemetry.shutdown(5)
    (scope,) = sink.resource_spans[0].scope_spans
    assert [span.name for span in scope.spans] == ["a.B/C", "POST"]
    assert scope.scope.version == "0.1"


async def test_metrics_arrive_over_otlp_grpc(sink: OtlpSink) -> None:
    telemetry = start_telemetry(ExportPlan.load(sink.environ), version="0.1", instance_id="i-1")
    telemetry.instruments.delivered(0.5)
    await asyncio.to_thread(sink.wait_for, lambda s: any(m.name == DELIVERIES.name for m in s.metrics))
    metric = next(m for m in sink.metrics if m.name == DELIVERIES.name)
    assert metric.sum.data_points[0].as_int == 1
    assert await telemetry.shutdown(5)


async def test_what_is_left_is_exported_on_shutdown(sink: OtlpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "60000")
    telemetry = start_telemetry(ExportPlan.load(sink.environ), version="0.1", instance_id="i-1")
    telemetry.instruments.delivered(0.5)
    with telemetry.tracing.server_span("a.B/C", None):
        pass
    assert await telemetry.shutdown(5)
    assert [span.name for span in sink.spans] == ["a.B/C"]
    assert DELIVERIES.name in {metric.name for metric in sink.metrics}


async def test_a_collector_that_never_answers_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        telemetry = start_telemetry(ExportPlan.load({"OTEL_TRACES_EXPORTER": "otlp"}), version="0.1", instance_id="i-1")
        with telemetry.tracing.server_span("a.B/C", None):
            pass
        started = time.monotonic()
        assert not await telemetry.shutdown(0.3)
        assert time.monotonic() - started < 2


async def test_traces_arrive_over_otlp_http(monkeypatch: pytest.MonkeyPatch) -> None:
    received: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        await received.put((request.path, await request.read()))
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.add_routes([web.post("/{path:.*}", take)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{runner.addresses[0][1]}")
        plan = ExportPlan.load({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})
        telemetry = start_telemetry(plan, version="0.1", instance_id="i-1")
        with telemetry.tracing.server_span("a.B/C", None):
            pass
        assert await telemetry.shutdown(5)
        path, body = await asyncio.wait_for(received.get(), 5)
        assert path == "/v1/traces"
        assert body
    finally:
        await runner.cleanup()
