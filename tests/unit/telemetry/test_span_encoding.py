"""The lean encoder says what the library's says, to the last field."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags, TraceState

from dispatcher.telemetry import span_encoding
from dispatcher.telemetry.attempt_spans import AttemptTrace
from dispatcher.telemetry.span_encoding import LeanGrpcExporter, encode
from tests.support.tracing import tracing_to

PUBLISHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REMOTE = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1))
STATED = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("a", "b")]))


def attempts() -> tuple[ReadableSpan, ...]:
    """Every kind of span of an attempt, those of calls and of the database around them."""
    exporter = InMemorySpanExporter()
    tracing = tracing_to(exporter)
    for number, continues in enumerate([True, False] * 3, start=1):
        about = AttemptTrace("acme", f"e{number}", number, f"id-{number}", "a.b", number, "http://h:1/x?y=z", 400)
        publisher = PUBLISHER if number < 5 else None
        with tracing.delivery_span(lambda about=about: about, publisher, continue_trace=continues) as span:
            if number % 3:
                span.answered(200 + number * 100, outcome="success")
            else:
                span.failed("timeout", outcome="retry")
    with tracing.server_span("a.B/C", PUBLISHER) as call, tracing.database_span("publish"):
        call.publishes("acme", 3)
        call.ended("INTERNAL")
    return exporter.get_finished_spans()


def odd() -> tuple[ReadableSpan, ...]:
    """What is never seen here, or hardly."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "x", "n": 3}, "https://schema"))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("scope", "1.0", "https://schema")
    values = {"one": 1, "true": True, "float": 1.0, "zero": -0.0, "words": ["a", "b"], "bytes": b"x", "numbers": (1, 2)}
    for name, value in values.items():
        tracer.start_span("odd", attributes={name: value, "same": 1}).end()
    for same in (1, True, 1.0, "1"):
        tracer.start_span("alike", attributes={"same": same}).end()
    tracer.start_span("linked", links=[Link(REMOTE, {"a": 1}), Link(STATED), Link(REMOTE)]).end()
    described = tracer.start_span("described")
    described.add_event("something", {"a": "b"})
    described.set_status(Status(StatusCode.ERROR, "why"))
    described.end()
    well = tracer.start_span("well")
    well.set_status(Status(StatusCode.OK))
    well.end()
    stated = ReadableSpan("stated", STATED, REMOTE, provider.resource, status=Status(StatusCode.ERROR, "because"))
    return (*exporter.get_finished_spans(), stated)


@pytest.mark.parametrize("spans", [attempts(), odd(), (*attempts(), *odd()), ()], ids=["ours", "odd", "mixed", "none"])
def test_a_batch_is_encoded_as_the_library_encodes_it(spans: tuple[ReadableSpan, ...]) -> None:
    assert encode(spans) == encode_spans(spans)
    assert encode(tuple(reversed(spans))) == encode_spans(tuple(reversed(spans)))


def test_spans_of_calls_do_not_send_a_batch_through_the_librarys_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    by_library = []

    def note(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        by_library.extend(spans)
        return encode_spans(spans)

    monkeypatch.setattr(span_encoding, "encode_spans", note)
    spans = attempts()
    assert len({id(span.instrumentation_scope) for span in spans}) == 2, "the recorder's scope and the tracer's"
    encode(spans)
    assert by_library == [spans[0]]


def test_what_no_message_can_hold_costs_no_other_span(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = attempts()[:2]
    spans = [
        good,
        *(
            ReadableSpan(
                "bad",
                bad.context,
                resource=good.resource,
                attributes={"a": value, "b": 1},
                instrumentation_scope=good.instrumentation_scope,
            )
            for value in ("\ud800", 2**63)
        ),
        good,
    ]
    assert encode(spans) == encode_spans(spans)
    assert len(encode(spans).resource_spans[0].scope_spans[0].spans) == 4


def test_the_exporter_encodes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library calls a method of its own that is overridden: a release that calls another one is found here."""
    encoded = []

    def note(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        encoded.append(len(spans))
        return encode(spans)

    monkeypatch.setattr(span_encoding, "encode", note)
    exporter = LeanGrpcExporter(endpoint="http://127.0.0.1:1", insecure=True, timeout=0.1)
    spans = attempts()
    assert exporter.export(spans) is SpanExportResult.FAILURE  # nobody listens there
    exporter.shutdown()
    assert encoded == [len(spans)]
