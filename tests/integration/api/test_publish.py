"""PublisherService.Publish over a real channel: what is stored, and that bad input stores nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from webhooks.v1 import event_pb2, publisher_pb2, tenant_pb2

from dispatcher.embedded.postgres import EmbeddedPostgres
from dispatcher.errors import CommitUnknownError
from dispatcher.store.database import DatabaseOptions
from dispatcher.store.group_commit import GroupCommitLimits
from tests.support.api import Api, event, refused, serving
from tests.support.postgres import TestDatabase

MIB = 1024 * 1024


async def test_an_accepted_event_is_stored_with_one_row_per_subscribed_endpoint(api: Api) -> None:
    await api.tenant()
    await api.endpoint("one", event_types=["order.*"])
    await api.endpoint("two", event_types=["*"])
    await api.endpoint("three", event_types=["user.created"])
    answer = await api.publish(
        event("e-1", b'{"a": 1}', ordering_key="k", attributes={"x": "y"}, source="/s", subject="u"), event()
    )
    first, second = answer.results
    assert (first.event, first.event_id, first.duplicate, first.endpoint_count) == (
        "tenants/acme/events/e-1",
        "e-1",
        False,
        2,
    )
    assert second.event_id.count("-") == 4, "an event without an id gets a UUID"
    assert await api.count("event") == 2
    assert await api.count("outbox") == 4
    stored = await api.database.fetchrow("SELECT * FROM event WHERE event_id = 'e-1'")
    assert stored is not None
    assert (bytes(stored["data"]), stored["ordering_key"], stored["content_type"]) == (
        b'{"a": 1}',
        "k",
        "application/json",
    )


async def test_the_callers_traceparent_is_stored_with_the_event(api: Api) -> None:
    await api.tenant()
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await api.publish(event("e-1"), metadata=(("traceparent", traceparent),))
    stored = await api.database.fetchval("SELECT traceparent FROM event")
    assert stored.split("-")[1] == traceparent.split("-")[1]


async def test_the_same_id_and_content_answers_with_the_first_result(api: Api) -> None:
    await api.tenant()
    await api.endpoint()
    await api.publish(event("e-1"))
    again = await api.publish(event_pb2.Event(id="e-1", type="order.paid", data_text="{}"))
    assert (again.results[0].duplicate, again.results[0].endpoint_count) == (True, 1)
    assert await api.count("event") == 1


async def test_the_same_id_with_other_content_is_refused(api: Api) -> None:
    await api.tenant()
    await api.publish(event("e-1"))
    refusal = await refused(api.publish(event("e-2"), event("e-1", b"other")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "EVENT_ID_REUSED")
    assert await api.count("event") == 1, "all or none"


BAD_EVENTS: dict[str, tuple[event_pb2.Event, str]] = {
    "no type": (event(type=""), "type"),
    "a type with an empty segment": (event(type="a..b"), "type"),
    "a long type": (event(type="a" * 129), "type"),
    "a type of the service's own": (event(type="dispatcher.ping"), "type"),
    "no payload": (event_pb2.Event(type="a"), "data"),
    "too much data": (event(data=b"x" * (MIB + 1)), "data"),
    "too much text": (event_pb2.Event(type="a", data_text="ä" * (MIB // 2 + 1)), "data"),
    "a bad content type": (event(data_content_type="json"), "data_content_type"),
    "a content type with a line break": (event(data_content_type="a/b\r\nx: y"), "data_content_type"),
    "a long content type": (event(data_content_type="a/" + "b" * 256), "data_content_type"),
    "an attribute name in capitals": (event(attributes={"Abc": "x"}), "attributes[Abc]"),
    "a long attribute name": (event(attributes={"a" * 21: "x"}), "attributes[aaaaaaaaaaaaaaaaaaaaa]"),
    "an attribute of CloudEvents' own": (event(attributes={"specversion": "1"}), "attributes[specversion]"),
    "an attribute value with a control character": (event(attributes={"a": "x\x00"}), "attributes[a]"),
    "a long attribute value": (event(attributes={"a": "x" * 1025}), "attributes[a]"),
    "too many attributes": (event(attributes={f"a{i}": "" for i in range(33)}), "attributes"),
    "an id with a dot": (event("a.b"), "id"),
    "a long id": (event("a" * 65), "id"),
    "an ordering key that is not ASCII": (event(ordering_key="schlüssel"), "ordering_key"),
    "an ordering key with a control character": (event(ordering_key="a\n"), "ordering_key"),
    "an ordering key that begins with a space": (event(ordering_key=" k"), "ordering_key"),
    "an ordering key that ends with a space": (event(ordering_key="k "), "ordering_key"),
    "an ordering key of spaces": (event(ordering_key=" "), "ordering_key"),
    "a long ordering key": (event(ordering_key="a" * 129), "ordering_key"),
    "a source with a control character": (event(source="a\x7f"), "source"),
    "a long subject": (event(subject="a" * 1025), "subject"),
    "a time out of range": (event(time=Timestamp(seconds=2**40)), "time"),
    "a time with negative nanoseconds": (event(time=Timestamp(nanos=-1)), "time"),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
async def test_bad_input_is_named_and_nothing_is_stored(api: Api, name: str) -> None:
    await api.tenant()
    bad, field = BAD_EVENTS[name]
    refusal = await refused(api.publish(event("good"), bad))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.fields == [f"events[1].{field}"]
    assert await api.count("event") == 0


@pytest.mark.parametrize("count", [0, 1001])
async def test_a_request_holds_1_to_1000_events(api: Api, count: int) -> None:
    await api.tenant()
    refusal = await refused(api.publish(*[event()] * count))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["events"])
    assert await api.count("event") == 0


async def test_an_id_twice_in_one_request_is_refused(api: Api) -> None:
    await api.tenant()
    refusal = await refused(api.publish(event("e-1"), event("e-2"), event("e-1")))
    assert refusal.fields == ["events[2].id"]
    assert await api.count("event") == 0


async def test_the_first_20_bad_fields_and_their_count_are_told_in_4_kb(api: Api) -> None:
    await api.tenant()
    refusal = await refused(api.publish(*[event("a.b", type="ü" * 200, ordering_key="ü")] * 500))
    assert 10 <= len(refusal.fields) <= 20
    assert refusal.metadata["violation_count"] == str(500 * 3 + 499)


@pytest.mark.parametrize("parent", ["", "acme", "tenants/", "tenants/a.b", "tenants/acme/endpoints/x", "tenants/-"])
async def test_a_malformed_parent_is_refused(api: Api, parent: str) -> None:
    request = publisher_pb2.PublishRequest(parent=parent, events=[event()])
    refusal = await refused(api.publisher.Publish(request))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["parent"])


async def test_an_unknown_tenant_is_named(api: Api) -> None:
    refusal = await refused(api.publish(event(), tenant="nobody"))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    info = refusal.detail(error_details_pb2.ResourceInfo)
    assert (info.resource_type, info.resource_name) == ("webhooks.dispatcher/Tenant", "tenants/nobody")
    assert await api.count("event") == 0


async def test_a_type_that_must_be_registered_is_refused_with_its_name(api: Api) -> None:
    await api.tenant(require_registered_event_types=True)
    refusal = await refused(api.publish(event()))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "EVENT_TYPE_NOT_REGISTERED")
    (violation,) = refusal.detail(error_details_pb2.PreconditionFailure).violations
    assert violation.subject == "tenants/acme/eventTypes/order.paid"
    assert await api.count("event") == 0


async def test_too_large_a_fan_out_is_refused(database: TestDatabase) -> None:
    async with serving(database.options, publish_rows_max=3) as api:
        await api.tenant()
        await api.endpoint("one")
        await api.endpoint("two")
        refusal = await refused(api.publish(event(), event()))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FAN_OUT_TOO_LARGE")
        assert await api.count("event") == 0


async def test_a_full_queue_is_resource_exhausted_with_a_time_to_wait(database: TestDatabase) -> None:
    async with serving(database.options, limits=GroupCommitLimits(queue_events_max=1), writing=False) as api:
        await api.tenant()
        waiting = asyncio.ensure_future(api.publish(event("e-1"), timeout=30))
        async with asyncio.timeout(5):
            while not api.commits.queued_events:
                await asyncio.sleep(0.01)
        refusal = await refused(api.publish(event("e-2")))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PUBLISH_QUEUE_FULL")
        assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.nanos > 0
        waiting.cancel()


async def test_a_deadline_too_short_to_commit_is_refused_before_writing(database: TestDatabase) -> None:
    async with serving(database.options, limits=GroupCommitLimits(commit_min_s=60.0)) as api:
        await api.tenant()
        refusal = await refused(api.publish(event(), timeout=30))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")
        assert await api.count("event") == 0


async def test_an_unknown_commit_is_told_as_such(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await api.tenant()

    async def lose(*_: Any, **__: Any) -> Any:
        raise CommitUnknownError("the connection was lost while the event was being stored")

    monkeypatch.setattr(api.commits, "submit", lose)
    refusal = await refused(api.publish(event("e-1")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "COMMIT_UNKNOWN")
    assert refusal.detail(error_details_pb2.RetryInfo).HasField("retry_delay")


async def test_a_bug_is_opaque_and_logged(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await api.tenant()

    async def break_down(*_: Any, **__: Any) -> Any:
        raise ValueError("the password is swordfish")

    monkeypatch.setattr(api.commits, "submit", break_down)
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    call = api.publish(event(), metadata=(("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),))
    refusal = await refused(call)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert refusal.metadata == {"trace_id": trace_id}
    assert "swordfish" not in str(refusal.status)
    (record,) = [record for record in caplog.records if record.name == "dispatcher.api.interceptors"]
    assert record.exc_info is not None
    assert "swordfish" in str(record.exc_info[1])


async def test_a_message_over_the_limit_is_refused_by_grpc_and_nothing_is_stored(database: TestDatabase) -> None:
    async with serving(database.options, grpc_message_bytes_max=128 * 1024, data_bytes_max=64 * 1024) as api:
        await api.tenant()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await api.publish(*[event(data=b"x" * 60_000)] * 3)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await api.count("event") == 0


async def test_a_database_that_is_away_is_unavailable_and_turns_health(crashable_postgres: EmbeddedPostgres) -> None:
    async with serving(DatabaseOptions(crashable_postgres.dsn, connect_timeout_s=1.0)) as api:
        await api.tenant()
        await crashable_postgres.stop()
        refusal = await refused(api.publish(event("e-1")))
        assert refusal.code is grpc.StatusCode.UNAVAILABLE
        assert refusal.reason in {"DATABASE_UNAVAILABLE", "COMMIT_UNKNOWN"}
        get = tenant_pb2.GetTenantRequest(name="tenants/acme")
        refusal = await refused(api.tenants.GetTenant(get))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        assert refusal.detail(error_details_pb2.RetryInfo).HasField("retry_delay")
        question = health_pb2.HealthCheckRequest(service="webhooks.v1.PublisherService")
        async with asyncio.timeout(5):
            async for answer in api.health_stub.Watch(question):
                if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    break
