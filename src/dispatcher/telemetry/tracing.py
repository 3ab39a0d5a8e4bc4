"""Spans, and the W3C trace context that travels with an event.

    caller's span ─▶ SERVER span of Publish ─(traceparent stored with the event)─▶ link, or parent, of each attempt's
    CLIENT span ─(traceparent header, if the endpoint wants one)─▶ receiver

Only `traceparent` is read or sent; never `tracestate` or `baggage`, which may hold what outsiders must not see.
With no exporter all of this is cheap: no span is made, and a caller's context still passes through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

URL_CHARS_MAX = 2048
_MASK = "REDACTED"
# https://www.w3.org/TR/trace-context/#traceparent-header; later versions may append fields, version ff is invalid
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.{0,200})?")
# Statuses that are the server's fault: semantic conventions for gRPC, server spans
_SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


def parse_traceparent(text: str | None) -> SpanContext | None:
    """The remote context that a `traceparent` names; None for anything that is not valid by the W3C's rules."""
    found = _TRACEPARENT.fullmatch(text) if text else None
    if found is None or (found[1] == "00" and found[5]):
        return None
    context = SpanContext(
        trace_id=int(found[2], 16),
        span_id=int(found[3], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(found[4], 16) & TraceFlags.SAMPLED),
    )
    return context if context.is_valid else None


def format_traceparent(context: SpanContext) -> str | None:
    """`00-<trace id>-<span id>-<flags>`; None where there is no valid context."""
    if not context.is_valid:
        return None
    trace_id, span_id = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
    return f"00-{trace_id}-{span_id}-{context.trace_flags & TraceFlags.SAMPLED:02x}"


def current_traceparent() -> str | None:
    """The `traceparent` of the span that is current: what Publish stores with its events."""
    return format_traceparent(trace.get_current_span().get_span_context())


def redact_url(url: str) -> str:
    """`url` without user and password, values of the query and fragment; names of the query stay."""
    try:
        parts = urlsplit(url)
        query = urlencode([(name, _MASK) for name, _ in parse_qsl(parts.query, keep_blank_values=True)])
    except ValueError:
        return _MASK
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment="").geturl()[:URL_CHARS_MAX]


@dataclass(frozen=True, slots=True)
class AttemptTrace:
    """What the span of one attempt tells. `tenant` and `endpoint` are ids, `attempt_number` counts from 1."""

    tenant: str
    endpoint: str
    sequence: int
    event_id: str
    event_type: str
    attempt_number: int
    url: str
    body_bytes: int


class AttemptSpan:
    """The CLIENT span of one attempt while it runs: a context manager, which ends it. It is current nowhere: nothing
    below an attempt makes spans of its own."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: Span) -> None:
        self._span = span
        self.traceparent = format_traceparent(span.get_span_context())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and self._span.is_recording():
            self._span.set_attribute("error.type", kind.__name__)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def answered(self, status_code: int, *, outcome: str) -> None:
        """The receiver answered with `status_code`; 4xx and 5xx are errors of a client span."""
        if self._span.is_recording():
            self._span.set_attribute("http.response.status_code", status_code)
            self._span.set_attribute("dispatcher.attempt.outcome", outcome)
            if status_code >= 400:
                self._error(str(status_code))

    def failed(self, error_type: str, *, outcome: str) -> None:
        """No answer came; `error_type` is a word of a closed set (`timeout`), never a message."""
        if self._span.is_recording():
            self._span.set_attribute("dispatcher.attempt.outcome", outcome)
            self._error(error_type)

    def _error(self, error_type: str) -> None:
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(Status(StatusCode.ERROR))


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
            if status in _SERVER_FAULTS:
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


class ChosenIds(RandomIdGenerator):
    """Ids of traces that may be chosen beforehand, each for the next trace to begin."""

    def __init__(self) -> None:
        self._next: int | None = None

    def choose(self, trace_id: int) -> None:
        """The next trace begins with this id."""
        self._next = trace_id

    def generate_trace_id(self) -> int:
        chosen, self._next = self._next, None
        return super().generate_trace_id() if chosen is None else chosen


class Tracing:
    """Makes the service's spans. Exceptions are noted by type only: their text may hold an address or a payload."""

    def __init__(self, tracer: trace.Tracer, sampler: Sampler | None = None, ids: ChosenIds | None = None) -> None:
        """With the `sampler` and the `ids` of the tracer's provider, an attempt whose span is not sampled costs a tenth
        of what it does without them. The sampler must decide by the trace's id, as all of OTEL_TRACES_SAMPLER do."""
        self._tracer = tracer
        self._is_silent = isinstance(tracer, trace.NoOpTracer)
        self._sampler = sampler
        self._ids = ids

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
        if not continue_trace and (self._is_silent or not (is_sent or self._samples_root())):
            return _NO_SPAN
        origin = parse_traceparent(publisher)
        links = [Link(origin)] if origin and not continue_trace else []
        context = _child_of(origin if continue_trace else None)
        span = self._tracer.start_span("POST", context, SpanKind.CLIENT, None, links, record_exception=False)
        if span.is_recording():
            span.set_attributes(_attempt_attributes(about()))
        return AttemptSpan(span)

    def _samples_root(self) -> bool:
        """Decide on the next trace before anything is made for it."""
        if self._sampler is None or self._ids is None:
            return True
        trace_id = self._ids.generate_trace_id()
        decision = self._sampler.should_sample(None, trace_id, "POST", SpanKind.CLIENT).decision
        if decision is Decision.DROP:
            return False
        self._ids.choose(trace_id)
        return True

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
    def _span(
        self,
        name: str,
        kind: SpanKind,
        context: Context | None,
        attributes: Mapping[str, str] | None,
        links: Sequence[Link] = (),
    ) -> Iterator[Span]:
        span = self._tracer.start_span(name, context, kind, attributes, links, record_exception=False)
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


_NO_SPAN = AttemptSpan(trace.INVALID_SPAN)


def _child_of(parent: SpanContext | None) -> Context:
    """A context with just this parent, or none: whatever span is current does not matter."""
    return Context() if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), Context())


@lru_cache(maxsize=1024)
def _url_attributes(url: str) -> Mapping[str, str | int]:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return {"url.full": _MASK}
    return {"url.full": redact_url(url), "server.address": parts.hostname or "", "server.port": port}


def _attempt_attributes(about: AttemptTrace) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "http.request.method": "POST",
        "http.request.body.size": about.body_bytes,
        "messaging.system": "dispatcher",
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "send",
        "messaging.destination.name": f"tenants/{about.tenant}/endpoints/{about.endpoint}",
        "messaging.message.id": about.event_id,
        "messaging.message.body.size": about.body_bytes,
        "dispatcher.event.type": about.event_type,
        "dispatcher.sequence": about.sequence,
    }
    attributes.update(_url_attributes(about.url))
    if about.attempt_number > 1:
        attributes["http.request.resend_count"] = about.attempt_number - 1
    return attributes
