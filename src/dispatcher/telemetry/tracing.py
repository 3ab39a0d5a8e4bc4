"""Spans, and the W3C trace context that travels with an event.

    caller's span ─▶ SERVER span of Publish ─(traceparent stored with the event)─▶ link, or parent, of each attempt's
    CLIENT span ─(traceparent header, if the endpoint wants one)─▶ receiver

Only `traceparent` is read or sent; never `tracestate` or `baggage`, which may hold what outsiders must not see.
With no exporter all of this is cheap: no span is made, and a caller's context still passes through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode

from dispatcher.telemetry.attempt_spans import NO_SPAN, AttemptSpan, AttemptTrace, SpanRecorder, passing
from dispatcher.telemetry.traceparent import format_traceparent, parse_traceparent

# Statuses that are the server's fault: semantic conventions for gRPC, server spans
SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


def current_traceparent() -> str | None:
    """The `traceparent` of the span that is current: what Publish stores with its events."""
    return format_traceparent(trace.get_current_span().get_span_context())


class ServerSpan:
    """The SERVER span of one gRPC call while it runs."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def ended(self, status: str) -> None:
        """The call's status code by name (`NOT_FOUND`)."""
        if self._span.is_recording():
            self._span.set_attribute("rpc.response.status_code", status)
            if status != "OK":
                self._span.set_attribute("error.type", status)
            if status in SERVER_FAULTS:
                self._span.set_status(Status(StatusCode.ERROR))

    def publishes(self, tenant: str, events: int) -> None:
        """This call publishes `events` events of `tenant`: the messaging side of the span."""
        if self._span.is_recording():
            self._span.set_attributes(
                {
                    "messaging.system": "dispatcher",
                    "messaging.operation.name": "publish",
                    "messaging.operation.type": "send",
                    "messaging.destination.name": f"tenants/{tenant}",
                    "messaging.batch.message_count": events,
                }
            )


class Tracing:
    """Makes the service's spans. Exceptions are noted by type only: their text may hold an address or a payload."""

    def __init__(self, tracer: trace.Tracer, recorder: SpanRecorder | None = None) -> None:
        """`recorder` takes the spans of attempts, of which there are very many; with none they are not recorded."""
        self._tracer = tracer
        self._recorder = recorder

    @classmethod
    def recording(cls, provider: TracerProvider, name: str, version: str = "", schema_url: str = "") -> Self:
        """With the spans of attempts, as the provider's sampler has them; the rest names the instrumentation scope."""
        tracer = provider.get_tracer(name, version, schema_url)
        scope = InstrumentationScope(name, version, schema_url)
        return cls(tracer, SpanRecorder(tracer, scope) if isinstance(tracer, SdkTracer) else None)

    @classmethod
    def silent(cls) -> Self:
        """No spans, for tests and tools."""
        return cls(trace.NoOpTracerProvider().get_tracer("dispatcher"))

    @contextmanager
    def server_span(self, method: str, traceparent: str | None) -> Iterator[ServerSpan]:
        """The SERVER span of `package.Service/Method`, child of the caller's `traceparent`; current within."""
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        with self._span(method, SpanKind.SERVER, _child_of(parse_traceparent(traceparent)), attributes) as span:
            yield ServerSpan(span)

    def delivery_span(
        self, about: Callable[[], AttemptTrace], publisher: str | None, *, continue_trace: bool, is_sent: bool = True
    ) -> AttemptSpan:
        """The CLIENT span of one attempt: a new root linked to the `publisher`'s traceparent, or its child. `about` is
        asked only if the span is recorded. `is_sent`: its traceparent is wanted, sampled or not."""
        if self._recorder is None:
            return passing(publisher) if continue_trace else NO_SPAN
        return self._recorder.span(about, publisher, continue_trace=continue_trace, is_sent=is_sent)

    @contextmanager
    def database_span(self, operation: str) -> Iterator[None]:
        """A CLIENT span of a database operation, only inside another span: polling in the background has none."""
        if not trace.get_current_span().is_recording():
            yield
            return
        attributes = {"db.system.name": "postgresql", "db.operation.name": operation}
        with self._span(operation, SpanKind.CLIENT, None, attributes):
            yield

    @contextmanager
    def commit_span(self) -> Iterator[None]:
        """An INTERNAL span while a call waits for the group commit that holds its events, inside another span only."""
        if not trace.get_current_span().is_recording():
            yield
            return
        with self._span("commit", SpanKind.INTERNAL, None, None):
            yield

    @contextmanager
    def _span(
        self,
        name: str,
        kind: SpanKind,
        context: Context | None,
        attributes: Mapping[str, str] | None,
    ) -> Iterator[Span]:
        span = self._tracer.start_span(name, context, kind, attributes, record_exception=False)
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield span
        except BaseException as error:
            if span.is_recording():
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            span.end()


def _child_of(parent: SpanContext | None) -> Context:
    """A context with just this parent, or none: whatever span is current does not matter."""
    return Context() if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), Context())
