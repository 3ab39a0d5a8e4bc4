"""What spans promise: shape, parent or link, nothing secret, and next to nothing when nobody listens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBasedTraceIdRatio
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode, format_trace_id

from dispatcher.telemetry.attempt_spans import ATTRIBUTES_MOST, AttemptTrace, redact_url
from dispatcher.telemetry.traceparent import parse_traceparent
from dispatcher.telemetry.tracing import Tracing, current_traceparent
from tests.support.tracing import tracing_to

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PUBLISHER = f"00-{TRACE_ID}-b7ad6b7169203331-01"
ATTEMPT = AttemptTrace(
    tenant="acme",
    endpoint="orders",
    sequence=7,
    event_id="evt_1",
    event_type="order.created",
    attempt_number=1,
    url="https://user:pw@hooks.example:8443/in?token=hunter2&empty=",
    body_bytes=12,
)


class Recorder:
    def __init__(self, **options: object) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = tracing_to(self.exporter, **options)

    def only(self) -> ReadableSpan:
        (span,) = self.exporter.get_finished_spans()
        return span


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def silent() -> Tracing:
    return Tracing(NoOpTracerProvider().get_tracer("test"))


def test_an_attempt_is_a_client_span_with_http_and_messaging_attributes(recorder: Recorder) -> None:
    with recorder.tracing.delivery_span(lambda: ATTEMPT, PUBLISHER, continue_trace=False) as span:
        span.answered(200, outcome="success")
    done = recorder.only()
    assert (done.name, done.kind, done.status.status_code) == ("POST", SpanKind.CLIENT, StatusCode.UNSET)
    assert dict(done.attributes or {}) == {
        "http.request.method": "POST",
        "http.request.body.size": 12,
        "http.response.status_code": 200,
        "url.full": "https://hooks.example:8443/in?token=REDACTED&empty=REDACTED",
        "server.address": "hooks.example",
        "server.port": 8443,
        "messaging.system": "dispatcher",
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "send",
        "messaging.destination.name": "tenants/acme/endpoints/orders",
        "messaging.message.id": "evt_1",
        "messaging.message.body.size": 12,
        "dispatcher.event.type": "order.created",
        "dispatcher.sequence": 7,
        "dispatcher.attempt.outcome": "success",
    }


def test_an_attempt_is_a_new_root_linked_to_the_publisher_by_default(recorder: Recorder) -> None:
    with (
        recorder.tracing.server_span("a.B/C", None),
        recorder.tracing.delivery_span(lambda: ATTEMPT, PUBLISHER, continue_trace=False),
    ):
        pass
    attempt = recorder.exporter.get_finished_spans()[0]
    assert attempt.parent is None
    assert [format_trace_id(link.context.trace_id) for link in attempt.links] == [TRACE_ID]
    assert attempt.context is not None
    assert format_trace_id(attempt.context.trace_id) != TRACE_ID


def test_an_attempt_continues_the_publishers_trace_where_asked(recorder: Recorder) -> None:
    with recorder.tracing.delivery_span(lambda: ATTEMPT, PUBLISHER, continue_trace=True) as span:
        assert span.traceparent is not None
        assert span.traceparent.startswith(f"00-{TRACE_ID}-")
        assert span.traceparent != PUBLISHER
    done = recorder.only()
    assert done.parent is not None
    assert format_trace_id(done.parent.trace_id) == TRACE_ID
    assert done.links == ()


def test_an_attempt_of_an_event_without_a_trace_is_a_root_without_link(recorder: Recorder) -> None:
    with recorder.tracing.delivery_span(lambda: ATTEMPT, None, continue_trace=True):
        pass
    assert recorder.only().parent is None


def test_attempts_are_sampled_at_the_rate_that_is_set_before_anything_is_made_for_them() -> None:
    recorder = Recorder(sampler=ParentBasedTraceIdRatio(0.25))
    told = []

    def about() -> AttemptTrace:
        told.append(1)
        return ATTEMPT

    for _ in range(2000):
        with recorder.tracing.delivery_span(about, PUBLISHER, continue_trace=False, is_sent=False):
            pass
    spans = recorder.exporter.get_finished_spans()
    assert 350 < len(spans) < 650  # 500 expected, 19 the standard deviation
    assert len(told) == len(spans) == len({span.context.trace_id for span in spans})
    assert all(span.links for span in spans)


def test_an_attempt_that_is_not_sampled_still_sends_a_traceparent_of_its_own() -> None:
    recorder = Recorder(sampler=ALWAYS_OFF)
    with recorder.tracing.delivery_span(lambda: ATTEMPT, PUBLISHER, continue_trace=False) as span:
        assert span.traceparent is not None
        assert span.traceparent.endswith("-00")


def test_the_limits_of_attributes_hold_for_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "5")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
    recorder = Recorder()
    with recorder.tracing.delivery_span(lambda: ATTEMPT, None, continue_trace=False) as span:
        span.answered(200, outcome="success")
    done = recorder.only()
    assert done.attributes is not None
    assert done.attributes["dispatcher.attempt.outcome"] == "suc"
    assert (len(done.attributes), done.dropped_attributes) == (5, 10)


@pytest.mark.parametrize("limit", ["0", "1", "16", "17", "18"])
@pytest.mark.parametrize("name", ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT"])
def test_a_limit_holds_as_in_a_span_of_the_sdk(monkeypatch: pytest.MonkeyPatch, name: str, limit: str) -> None:
    """Of the attributes that the SDK's span is given one by one, too."""
    retry = replace(ATTEMPT, attempt_number=2)
    whole = Recorder()
    with whole.tracing.delivery_span(lambda: retry, PUBLISHER, continue_trace=False) as span:
        span.answered(500, outcome="retry")
    assert len(whole.only().attributes or {}) == ATTRIBUTES_MOST
    monkeypatch.setenv(name, limit)
    ours, sdks = Recorder(), InMemorySpanExporter()
    with ours.tracing.delivery_span(lambda: retry, PUBLISHER, continue_trace=False) as span:
        span.answered(500, outcome="retry")
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(sdks))
    made = provider.get_tracer("test").start_span("POST", links=whole.only().links)
    made.set_attributes(whole.only().attributes or {})
    made.end()
    (other,), mine = sdks.get_finished_spans(), ours.only()
    assert mine.attributes == other.attributes
    assert (mine.dropped_attributes, mine.dropped_links) == (other.dropped_attributes, other.dropped_links)
    assert len(mine.links) == len(other.links)


def test_a_retry_tells_its_resend_count(recorder: Recorder) -> None:
    retry = AttemptTrace("t", "e", 1, "id", "a", 3, "http://h/", 0)
    with recorder.tracing.delivery_span(lambda: retry, None, continue_trace=False) as span:
        span.answered(503, outcome="retry")
    done = recorder.only()
    assert done.attributes is not None
    assert done.attributes["http.request.resend_count"] == 2
    assert done.attributes["error.type"] == "503"
    assert done.attributes["server.port"] == 80
    assert done.status.status_code is StatusCode.ERROR


def test_an_attempt_without_answer_tells_the_type_of_error(recorder: Recorder) -> None:
    with recorder.tracing.delivery_span(lambda: ATTEMPT, None, continue_trace=False) as span:
        span.failed("timeout", outcome="retry")
    done = recorder.only()
    assert done.attributes is not None
    assert done.attributes["error.type"] == "timeout"
    assert done.status.status_code is StatusCode.ERROR


def test_an_exception_is_noted_by_type_and_never_by_text(recorder: Recorder) -> None:
    with pytest.raises(ValueError, match="hunter2"):  # noqa: SIM117 - the span must see the exception first
        with recorder.tracing.delivery_span(lambda: ATTEMPT, None, continue_trace=False):
            raise ValueError("hunter2")
    done = recorder.only()
    assert done.attributes is not None
    assert done.attributes["error.type"] == "ValueError"
    assert "hunter2" not in done.to_json()


def test_without_an_exporter_no_span_is_made_and_a_continued_trace_passes_through() -> None:
    with silent().delivery_span(lambda: ATTEMPT, PUBLISHER, continue_trace=False) as span:
        assert span.traceparent is None
    with silent().delivery_span(lambda: ATTEMPT, PUBLISHER, continue_trace=True) as span:
        assert span.traceparent == PUBLISHER


def test_without_an_exporter_the_callers_context_is_still_what_publish_stores() -> None:
    with silent().server_span("a.B/C", PUBLISHER):
        assert current_traceparent() == PUBLISHER
    assert current_traceparent() is None


def test_an_unsampled_trace_stays_unsampled() -> None:
    recorder = Recorder(sampler=ALWAYS_OFF)
    with recorder.tracing.delivery_span(lambda: ATTEMPT, PUBLISHER, continue_trace=True) as span:
        assert span.traceparent is not None
        assert span.traceparent.endswith("-00")
    assert recorder.exporter.get_finished_spans() == ()


def test_a_call_is_a_server_span_under_the_callers(recorder: Recorder) -> None:
    with recorder.tracing.server_span("webhooks.v1.PublisherService/Publish", PUBLISHER) as span:
        span.publishes("acme", 3)
        span.ended("OK")
        inside = current_traceparent()
    done = recorder.only()
    assert (done.name, done.kind) == ("webhooks.v1.PublisherService/Publish", SpanKind.SERVER)
    assert done.parent is not None
    assert format_trace_id(done.parent.trace_id) == TRACE_ID
    assert inside is not None
    assert inside.startswith(f"00-{TRACE_ID}-")
    attributes = dict(done.attributes or {})
    assert attributes["rpc.system.name"] == "grpc"
    assert attributes["rpc.method"] == "webhooks.v1.PublisherService/Publish"
    assert attributes["rpc.response.status_code"] == "OK"
    assert attributes["messaging.batch.message_count"] == 3
    assert "error.type" not in attributes


@pytest.mark.parametrize(("status", "expected"), [("NOT_FOUND", StatusCode.UNSET), ("INTERNAL", StatusCode.ERROR)])
def test_only_the_servers_own_faults_are_errors_of_a_server_span(
    recorder: Recorder, status: str, expected: StatusCode
) -> None:
    with recorder.tracing.server_span("a.B/C", None) as span:
        span.ended(status)
    done = recorder.only()
    assert done.status.status_code is expected
    assert done.attributes is not None
    assert done.attributes["error.type"] == status


def test_a_database_operation_has_a_span_inside_another_and_none_in_the_background(recorder: Recorder) -> None:
    with recorder.tracing.database_span("renew_leases"):
        pass
    assert recorder.exporter.get_finished_spans() == ()
    with recorder.tracing.server_span("a.B/C", None), recorder.tracing.database_span("publish"):
        pass
    database, server = recorder.exporter.get_finished_spans()
    assert (database.name, database.kind) == ("publish", SpanKind.CLIENT)
    assert database.parent is not None
    assert server.context is not None
    assert database.parent.span_id == server.context.span_id


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "00",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"ff-{TRACE_ID}-b7ad6b7169203331-01",
        f"00-{TRACE_ID.upper()}-b7ad6b7169203331-01",
        f"00-{TRACE_ID}-b7ad6b7169203331-01-extra",
        f"00-{TRACE_ID}-b7ad6b7169203331-01\n",
        f" 00-{TRACE_ID}-b7ad6b7169203331-01",
    ],
)
def test_an_invalid_traceparent_is_none_at_all(text: str | None) -> None:
    assert parse_traceparent(text) is None


def test_a_traceparent_of_a_later_version_is_understood() -> None:
    context = parse_traceparent(f"01-{TRACE_ID}-b7ad6b7169203331-03-more")
    assert context is not None
    assert context.is_remote
    assert context.trace_flags == 1
    assert not context.trace_state


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/p", "https://h/p"),
        ("https://u:p@h:1/p?a=b&a=c#f", "https://h:1/p?a=REDACTED&a=REDACTED"),
        ("https://u:p%40@[::1]:1/", "https://[::1]:1/"),
        ("https://[::1/", "REDACTED"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert redact_url(url) == shown
