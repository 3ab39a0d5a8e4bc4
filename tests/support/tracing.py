"""Spans that end in memory."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

from dispatcher.telemetry.tracing import Tracing

SCOPE = "test"


def tracing_to(exporter: SpanExporter, **options: Any) -> Tracing:
    """Tracing as the service has it, but each span is exported at once; `options` are those of a TracerProvider."""
    provider = TracerProvider(shutdown_on_exit=False, **options)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing.recording(provider, SCOPE)
