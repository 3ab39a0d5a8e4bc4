"""From the publisher's span to the webhook, as an OTLP collector and the receiver see it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from webhooks.v1 import endpoint_pb2

from dispatcher.telemetry.catalog import (
    ATTEMPT_DURATION,
    DELIVERIES,
    DELIVERY_LATENCY,
    EVENTS_PUBLISHED,
    RPC_SERVER_CALL,
)
from tests.support.callers import calling, event
from tests.support.otlp import OtlpSink, attributes_of
from tests.support.postgres import TestDatabase
from tests.support.process import processes
from tests.support.receiver import Answer, Receiver

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
METADATA = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "vendor=secret"), ("baggage", "user=secret"))
PROPAGATIONS = {
    "default": endpoint_pb2.TRACE_PROPAGATION_UNSPECIFIED,
    "none": endpoint_pb2.TRACE_PROPAGATION_NONE,
    "root": endpoint_pb2.TRACE_PROPAGATION_NEW_ROOT,
    "continue": endpoint_pb2.TRACE_PROPAGATION_CONTINUE,
}
METRICS = {m.name for m in (RPC_SERVER_CALL, EVENTS_PUBLISHED, DELIVERIES, ATTEMPT_DURATION, DELIVERY_LATENCY)}


async def test_the_trace_leads_from_the_publisher_to_the_webhook(database: TestDatabase, tmp_path: Path) -> None:
    with OtlpSink() as sink, processes(database.dsn, tmp_path, 1, sink.environ) as (served,):
        async with calling(served) as (caller,), Receiver() as receiver:
            receiver.on("default", Answer(503))
            await caller.tenant()
            for name, propagation in PROPAGATIONS.items():
                await caller.endpoint(name, receiver.url(name), trace_propagation=propagation)
            await caller.publish(event("evt-1"), metadata=METADATA)
            await receiver.wait_for(len(PROPAGATIONS) + 1)
            await asyncio.to_thread(sink.wait_for, lambda s: len(_posts(s)) > len(PROPAGATIONS))
            await asyncio.to_thread(sink.wait_for, lambda s: {m.name for m in s.metrics} >= METRICS)
            await asyncio.to_thread(sink.wait_for, lambda s: bool(_exemplars(s)))
        sent = {request.endpoint: request.headers for request in receiver.requests}
        (server,) = [span for span in sink.spans if span.name == "webhooks.v1.PublisherService/Publish"]
        assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, SPAN)
        _check_the_commit(sink, server)
        _check_the_exemplars(sink)
        assert server.kind == server.SPAN_KIND_SERVER
        _check_linked_roots(sink, server)
        _check_the_child(sink, server)
        assert {name for name, headers in sent.items() if "traceparent" in headers} == {"root", "continue"}
        assert sent["root"]["traceparent"] == _header_of(_of(sink, "root")[0])
        assert sent["continue"]["traceparent"] == _header_of(_of(sink, "continue")[0])
        assert not any({"tracestate", "baggage"} & headers.keys() for headers in sent.values())
        assert "secret" not in f"{sent}{sink.spans}{sink.metrics}"
        _check_no_span_of_the_background(sink)


async def test_a_call_follows_its_callers_flag_and_each_attempt_the_sampler(
    database: TestDatabase, tmp_path: Path
) -> None:
    """With a ratio of 0 no root is recorded: neither a caller's without context, nor an attempt, though it is sent."""
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    with OtlpSink() as sink, processes(database.dsn, tmp_path, 1, sink.environ | sampler) as (served,):
        async with calling(served) as (caller,), Receiver() as receiver:
            await caller.tenant()
            for name in ("root", "continue"):
                await caller.endpoint(name, receiver.url(name), trace_propagation=PROPAGATIONS[name])
            await caller.publish(event("unsampled"))
            await caller.publish(event("sampled"), metadata=METADATA)
            await receiver.wait_for(4)
            await asyncio.to_thread(sink.wait_for, lambda s: bool(_posts(s)))
        assert await _exit_code(served) == 0
        sent = {(r.endpoint, r.event_id): r.headers.get("traceparent") for r in receiver.requests}
    assert [attributes_of(span)["messaging.message.id"] for span in _posts(sink)] == ["sampled"]
    (post,) = _posts(sink)
    assert (post.trace_id.hex(), sent["continue", "sampled"]) == (TRACE, _header_of(post))
    assert {span.name for span in sink.spans} >= {"webhooks.v1.PublisherService/Publish", "commit", "POST"}
    assert {span.trace_id.hex() for span in sink.spans} == {TRACE}
    for event_id in ("sampled", "unsampled"):
        header = sent["root", event_id]
        assert header is not None
        assert header.endswith("-00")


async def _exit_code(served: Any) -> int:
    served.terminate()
    return await served.exit_code(20)


def _check_the_commit(sink: OtlpSink, server: Any) -> None:
    """The wait for the group commit is a part of the call, and ends before the first attempt begins."""
    (commit,) = [span for span in sink.spans if span.name == "commit"]
    assert (commit.trace_id, commit.parent_span_id) == (server.trace_id, server.span_id)
    assert commit.kind == commit.SPAN_KIND_INTERNAL
    assert server.start_time_unix_nano <= commit.start_time_unix_nano <= commit.end_time_unix_nano
    assert commit.end_time_unix_nano <= server.end_time_unix_nano


def _exemplars(sink: OtlpSink) -> list[Any]:
    found = [metric for metric in sink.metrics if metric.name == DELIVERY_LATENCY.name]
    return [exemplar for metric in found for point in metric.histogram.data_points for exemplar in point.exemplars]


def _check_the_exemplars(sink: OtlpSink) -> None:
    """A slow bucket leads to the trace of an attempt that fell into it."""
    posts = [post for post in _posts(sink) if attributes_of(post)["http.response.status_code"] == 204]
    succeeded = {(post.trace_id, post.span_id) for post in posts}
    exemplars = _exemplars(sink)
    assert {(exemplar.trace_id, exemplar.span_id) for exemplar in exemplars} <= succeeded
    assert all(exemplar.as_double > 0 for exemplar in exemplars)


def _check_linked_roots(sink: OtlpSink, server: Any) -> None:
    """Each attempt has a trace of its own, which names the publisher's call."""
    attempts = [span for name in ("default", "none", "root") for span in _of(sink, name)]
    assert len({span.trace_id for span in attempts} | {server.trace_id}) == 5
    for span in attempts:
        assert span.kind == span.SPAN_KIND_CLIENT
        assert span.parent_span_id == b""
        assert [(link.trace_id, link.span_id) for link in span.links] == [(server.trace_id, server.span_id)]
    first, second = sorted(_of(sink, "default"), key=lambda span: span.start_time_unix_nano)
    told = [attributes_of(span) for span in (first, second)]
    assert [attributes["http.response.status_code"] for attributes in told] == [503, 204]
    assert [attributes.get("http.request.resend_count") for attributes in told] == [None, 1]


def _check_the_child(sink: OtlpSink, server: Any) -> None:
    (span,) = _of(sink, "continue")
    assert (span.trace_id, span.parent_span_id) == (server.trace_id, server.span_id)
    assert not span.links
    told = attributes_of(span)
    assert told["messaging.message.id"] == "evt-1"
    assert told["http.response.status_code"] == 204


def _check_no_span_of_the_background(sink: OtlpSink) -> None:
    """Polling for leases, hints and commands leaves no trace: whatever has no parent is a call or an attempt."""
    roots = {span.name for span in sink.spans if not span.parent_span_id}
    assert {name for name in roots if not name.startswith("webhooks.v1.")} == {"POST"}


def _posts(sink: OtlpSink) -> list[Any]:
    return [span for span in sink.spans if span.name == "POST"]


def _of(sink: OtlpSink, endpoint: str) -> list[Any]:
    destination = f"tenants/acme/endpoints/{endpoint}"
    return [span for span in _posts(sink) if attributes_of(span)["messaging.destination.name"] == destination]


def _header_of(span: Any) -> str:
    return f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01"
