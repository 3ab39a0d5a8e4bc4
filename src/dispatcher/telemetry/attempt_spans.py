"""The CLIENT span of an attempt. There are as many as deliveries, so they are not made as the SDK makes its spans.

A span of the SDK takes 27 µs and 20 more when its attributes are read: locks, bounded mappings, copies. Here the
sampler is asked before anything is made; a span that is recorded is a plain mapping until it ends, and then one
ReadableSpan that the span processor takes like any other. What the SDK's span would do and this does not: events,
exceptions, changes from other threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, Tracer
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from dispatcher.telemetry.traceparent import format_traceparent, parse_traceparent

URL_CHARS_MAX = 2048
ATTRIBUTES_MOST = 17
"""No attempt's span has more; a limit below this counts."""
_MASK = "REDACTED"
_NAME = "POST"
_UNSET, _ERROR = Status(StatusCode.UNSET), Status(StatusCode.ERROR)
_SAMPLED, _NOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)

_NOTHING = Context()
"""None would be whatever is current, and looking for it is half of a sampler's time."""

Attributes = dict[str, str | int]


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
    """One that is not recorded; a context manager. It is current nowhere: nothing below an attempt makes spans."""

    __slots__ = ("traceparent",)
    recorded: SpanContext | None = None
    """Who it is, where it is recorded: what an exemplar names."""

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """The end of the span."""

    def answered(self, status_code: int, *, outcome: str) -> None:
        """The receiver answered with `status_code`; 4xx and 5xx are errors of a client span."""

    def failed(self, error_type: str, *, outcome: str) -> None:
        """No answer came; `error_type` is a word of a closed set (`timeout`), never a message."""


class RecordedSpan(AttemptSpan):
    """One that is recorded, and handed on when it ends."""

    __slots__ = ("_attributes", "_links", "_parent", "_recorder", "_start_ns", "_status", "recorded")

    def __init__(
        self,
        recorder: SpanRecorder,
        context: SpanContext,
        parent: SpanContext | None,
        links: Sequence[Link],
        attributes: Attributes,
    ) -> None:
        self.traceparent = format_traceparent(context)
        self.recorded: SpanContext = context
        self._recorder, self._parent, self._links = recorder, parent, links
        self._attributes = attributes
        self._status = _UNSET
        self._start_ns = time.time_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._failed(kind.__name__)
        recorder = self._recorder
        recorder.processor.on_end(
            ReadableSpan(
                name=_NAME,
                context=self.recorded,
                parent=self._parent,
                resource=recorder.resource,
                attributes=recorder.within_limits(self._attributes),
                links=self._links,
                kind=SpanKind.CLIENT,
                status=self._status,
                start_time=self._start_ns,
                end_time=time.time_ns(),
                instrumentation_scope=recorder.scope,
            )
        )

    def answered(self, status_code: int, *, outcome: str) -> None:
        self._attributes["http.response.status_code"] = status_code
        self._attributes["dispatcher.attempt.outcome"] = outcome
        if status_code >= 400:
            self._failed(str(status_code))

    def failed(self, error_type: str, *, outcome: str) -> None:
        self._attributes["dispatcher.attempt.outcome"] = outcome
        self._failed(error_type)

    def _failed(self, error_type: str) -> None:
        self._attributes["error.type"] = error_type
        self._status = _ERROR


NO_SPAN = AttemptSpan(None)


def passing(publisher: str | None) -> AttemptSpan:
    """No span of our own; what the publisher sent goes on to the receiver, where it is valid."""
    origin = parse_traceparent(publisher)
    return NO_SPAN if origin is None else AttemptSpan(format_traceparent(origin))


class SpanRecorder:
    """Decides which attempts get a span, and hands those on, as `tracer` would; `scope` is the tracer's."""

    def __init__(self, tracer: Tracer, scope: InstrumentationScope) -> None:
        self._sampler, self._ids = tracer.sampler, tracer.id_generator
        self.processor, self.resource, self.scope = tracer.span_processor, tracer.resource, scope
        limits = SpanLimits()
        self._count_max, self._chars_max = limits.max_span_attributes, limits.max_span_attribute_length
        has_few = self._count_max is not None and self._count_max < ATTRIBUTES_MOST
        self._is_limited = has_few or self._chars_max is not None
        self._links_max = limits.max_links

    def within_limits(self, attributes: Attributes) -> Mapping[str, AttributeValue]:
        """The attributes as OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT and _VALUE_LENGTH_LIMIT have them."""
        if not self._is_limited:
            return attributes
        return BoundedAttributes(self._count_max, attributes, max_value_len=self._chars_max)

    def span(
        self, about: Callable[[], AttemptTrace], publisher: str | None, *, continue_trace: bool, is_sent: bool
    ) -> AttemptSpan:
        """See Tracing.delivery_span."""
        parent = parse_traceparent(publisher) if continue_trace else None
        trace_id = self._ids.generate_trace_id() if parent is None else parent.trace_id
        is_sampled = self._samples(parent, trace_id)
        if not (is_sampled or is_sent):
            return NO_SPAN
        flags = _SAMPLED if is_sampled else _NOT_SAMPLED
        context = SpanContext(trace_id, self._ids.generate_span_id(), is_remote=False, trace_flags=flags)
        if not is_sampled:
            return AttemptSpan(format_traceparent(context))
        links = () if continue_trace else self._links(parse_traceparent(publisher))
        return RecordedSpan(self, context, parent, links, _attributes(about()))

    def _links(self, origin: SpanContext | None) -> Sequence[Link]:
        if origin is None:
            return ()
        return (Link(origin),) if self._links_max != 0 else BoundedList.from_seq(0, (Link(origin),))

    def _samples(self, parent: SpanContext | None, trace_id: int) -> bool:
        above = _NOTHING if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), _NOTHING)
        decided = self._sampler.should_sample(above, trace_id, _NAME, SpanKind.CLIENT).decision
        return decided is Decision.RECORD_AND_SAMPLE


@lru_cache(maxsize=1024)
def _url_attributes(url: str) -> Mapping[str, str | int]:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return {"url.full": _MASK}
    return {"url.full": redact_url(url), "server.address": parts.hostname or "", "server.port": port}


def _attributes(about: AttemptTrace) -> Attributes:
    attributes: Attributes = {
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
