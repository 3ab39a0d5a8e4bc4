"""DeliveryService over a real channel: events, deliveries, attempts and status read back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from webhooks.v1 import attempt_pb2, delivery_pb2, event_pb2

from dispatcher.model import Attempt, Outcome
from dispatcher.store import attempts
from dispatcher.store import endpoints as store
from tests.support.api import Api, event, refused

ENDPOINT = "tenants/acme/endpoints/billing"


async def published(api: Api, *events: event_pb2.Event) -> None:
    await api.tenant()
    await api.endpoint()
    await api.publish(*events)


async def attempted(api: Api, seq: int, event_id: str, outcome: Outcome, number: int = 1) -> None:
    """Put an attempt on record, as an owner would."""
    key = (await store.get(api.database, "acme", "billing")).key
    failed = outcome is not Outcome.SUCCEEDED
    attempt = Attempt(
        key=key,
        seq=seq,
        event_id=event_id,
        epoch=1,
        number=number,
        start_time=datetime.now(UTC),
        duration_s=0.5,
        outcome=outcome,
        status_code=503 if failed else 204,
        error="answered 503" if failed else None,
        response_excerpt=b"no\x00" if failed else None,
    )
    await attempts.append(api.database, [attempt])


async def test_an_event_is_read_as_it_was_published(api: Api) -> None:
    given = event(
        "e-1",
        b"text",
        ordering_key="k",
        attributes={"a": "b"},
        source="/s",
        subject="u",
        time=Timestamp(seconds=-5, nanos=123_456_000),
        data_content_type='text/plain; charset="utf-8"',
    )
    await published(api, given, event("e-2", b"\xff"))
    read = await api.deliveries.GetEvent(delivery_pb2.GetEventRequest(name="tenants/acme/events/e-1"))
    assert read.publish_time.seconds > 0
    read.ClearField("publish_time")
    assert read.name == "tenants/acme/events/e-1"
    read.ClearField("name")
    given.data_text = "text"
    assert read == given
    binary = await api.deliveries.GetEvent(delivery_pb2.GetEventRequest(name="tenants/acme/events/e-2"))
    assert (binary.WhichOneof("payload"), binary.data) == ("data", b"\xff")
    basic = await api.deliveries.GetEvent(
        delivery_pb2.GetEventRequest(name="tenants/acme/events/e-2", view=event_pb2.EVENT_VIEW_BASIC)
    )
    assert basic.WhichOneof("payload") is None


async def test_events_are_listed_by_page_and_filter(api: Api) -> None:
    await published(api, event("e-1"), event("e-2", type="user.created"), event("e-3"))
    request = delivery_pb2.ListEventsRequest(parent="tenants/acme", page_size=1, filter="type = order.paid")
    first = await api.deliveries.ListEvents(request)
    request.page_token = first.next_page_token
    second = await api.deliveries.ListEvents(request)
    assert [e.id for e in (*first.events, *second.events)] == ["e-1", "e-3"]
    assert first.events[0].WhichOneof("payload") is None
    request.view = event_pb2.EVENT_VIEW_FULL
    assert (await refused(api.deliveries.ListEvents(request))).fields == ["page_token"]


async def test_a_delivery_tells_its_state_and_attempts(api: Api) -> None:
    await published(api, event("e-1"), event("e-2"))
    await attempted(api, 1, "e-1", Outcome.HTTP_ERROR)
    await attempted(api, 1, "e-1", Outcome.SUCCEEDED, 2)
    await attempted(api, 2, "e-2", Outcome.TIMEOUT)
    one = await api.deliveries.GetDelivery(delivery_pb2.GetDeliveryRequest(name=f"{ENDPOINT}/deliveries/1"))
    assert (one.state, one.attempt_count, one.event) == (
        delivery_pb2.Delivery.STATE_DELIVERED,
        2,
        "tenants/acme/events/e-1",
    )
    assert one.last_attempt.outcome == attempt_pb2.ATTEMPT_OUTCOME_SUCCEEDED
    assert one.HasField("deliver_time")
    listed = await api.deliveries.ListDeliveries(delivery_pb2.ListDeliveriesRequest(parent=ENDPOINT))
    assert [d.sequence for d in listed.deliveries] == [2, 1]
    assert listed.deliveries[1] == one
    by_event = delivery_pb2.ListDeliveriesRequest(
        parent="tenants/acme/endpoints/-", filter='event = "tenants/acme/events/e-2"'
    )
    assert [d.state for d in (await api.deliveries.ListDeliveries(by_event)).deliveries] == [
        delivery_pb2.Delivery.STATE_PENDING
    ]


async def test_attempts_are_listed_for_a_delivery_an_endpoint_or_a_tenant(api: Api) -> None:
    await published(api, event("e-1"), event("e-2"))
    await attempted(api, 1, "e-1", Outcome.HTTP_ERROR)
    await attempted(api, 1, "e-1", Outcome.SUCCEEDED, 2)
    await attempted(api, 2, "e-2", Outcome.TIMEOUT)

    async def listed(parent: str, filter_: str = "") -> list[Any]:
        request = delivery_pb2.ListAttemptsRequest(parent=parent, filter=filter_)
        return list((await api.deliveries.ListAttempts(request)).attempts)

    of_one = await listed(f"{ENDPOINT}/deliveries/1")
    assert [a.attempt_number for a in of_one] == [2, 1]
    assert (of_one[1].status_code, of_one[1].error, of_one[1].response_excerpt) == (503, "answered 503", b"no\x00")
    assert len({a.name for a in of_one}) == 2
    assert all(a.name.startswith(f"{ENDPOINT}/deliveries/1/attempts/") for a in of_one)
    assert len(await listed(f"{ENDPOINT}/deliveries/-", "outcome != SUCCEEDED")) == 2
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert len(await listed("tenants/acme/endpoints/-/deliveries/-", f'start_time >= "{since}"')) == 3


async def test_a_status_tells_backlog_and_what_blocks(api: Api) -> None:
    await published(api, event("e-1"), event("e-2"), event("e-3"))
    await attempted(api, 1, "e-1", Outcome.SUCCEEDED)
    await attempted(api, 2, "e-2", Outcome.HTTP_ERROR)
    request = delivery_pb2.GetEndpointStatusRequest(name=f"{ENDPOINT}/status")
    status = await api.deliveries.GetEndpointStatus(request)
    assert (status.last_sequence, status.settled_sequence, status.backlog_count) == (3, 1, 2)
    assert status.HasField("oldest_pending_age")
    blocking = status.blocked_by
    assert (blocking.delivery, blocking.event, blocking.attempt_count) == (
        f"{ENDPOINT}/deliveries/2",
        "tenants/acme/events/e-2",
        1,
    )
    ended = blocking.last_attempt.start_time.ToDatetime() + timedelta(seconds=0.5)
    assert timedelta(0) < blocking.next_attempt_time.ToDatetime() - ended <= timedelta(seconds=1.001)


BAD_REQUESTS: dict[str, tuple[str, Any, list[str]]] = {
    "an event name": ("GetEvent", delivery_pb2.GetEventRequest(name="tenants/acme/events/a.b"), ["name"]),
    "an unknown view": ("GetEvent", delivery_pb2.GetEventRequest(name="tenants/acme/events/a", view=9), ["view"]),
    "a sequence of 0": ("GetDelivery", delivery_pb2.GetDeliveryRequest(name=f"{ENDPOINT}/deliveries/0"), ["name"]),
    "a huge sequence": (
        "GetDelivery",
        delivery_pb2.GetDeliveryRequest(name=f"{ENDPOINT}/deliveries/9999999999999999999"),
        ["name"],
    ),
    "any endpoint without a range": (
        "ListDeliveries",
        delivery_pb2.ListDeliveriesRequest(parent="tenants/acme/endpoints/-"),
        ["filter"],
    ),
    "any tenant": ("ListDeliveries", delivery_pb2.ListDeliveriesRequest(parent="tenants/-/endpoints/-"), ["parent"]),
    "a delivery of any endpoint": (
        "ListAttempts",
        delivery_pb2.ListAttemptsRequest(parent="tenants/acme/endpoints/-/deliveries/1"),
        ["parent"],
    ),
    "a malformed filter": (
        "ListEvents",
        delivery_pb2.ListEventsRequest(parent="tenants/acme", filter="type ="),
        ["filter"],
    ),
    "a malformed token": (
        "ListEvents",
        delivery_pb2.ListEventsRequest(parent="tenants/acme", page_token="!"),
        ["page_token"],
    ),
    "a negative page size": (
        "ListAttempts",
        delivery_pb2.ListAttemptsRequest(parent=f"{ENDPOINT}/deliveries/-", page_size=-1),
        ["page_size"],
    ),
    "a status name": ("GetEndpointStatus", delivery_pb2.GetEndpointStatusRequest(name=ENDPOINT), ["name"]),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_a_bad_request_is_refused_by_its_field(api: Api, name: str) -> None:
    method, request, fields = BAD_REQUESTS[name]
    await published(api, event())
    refusal = await refused(getattr(api.deliveries, method)(request))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, fields)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetEvent", delivery_pb2.GetEventRequest(name="tenants/acme/events/none")),
        ("ListEvents", delivery_pb2.ListEventsRequest(parent="tenants/none")),
        ("GetDelivery", delivery_pb2.GetDeliveryRequest(name=f"{ENDPOINT}/deliveries/99")),
        ("GetDelivery", delivery_pb2.GetDeliveryRequest(name="tenants/acme/endpoints/none/deliveries/1")),
        ("ListDeliveries", delivery_pb2.ListDeliveriesRequest(parent="tenants/acme/endpoints/none")),
        ("ListAttempts", delivery_pb2.ListAttemptsRequest(parent=f"{ENDPOINT}/deliveries/99")),
        ("GetEndpointStatus", delivery_pb2.GetEndpointStatusRequest(name="tenants/acme/endpoints/none/status")),
    ],
)
async def test_what_does_not_exist_is_not_found(api: Api, method: str, request_: Any) -> None:
    await published(api, event())
    refusal = await refused(getattr(api.deliveries, method)(request_))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
