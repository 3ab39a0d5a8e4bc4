"""ExpungeEvent: the payload is gone from everywhere, the record stays, and nothing can bring it back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import asyncpg
from webhooks.v1 import delivery_pb2

from dispatcher.model import Attempt, EndpointKey, Outcome
from dispatcher.store import attempts, endpoints
from tests.support.api import Api, event, refused

PRIVATE = "jane.doe@private.example"
NAME = "tenants/acme/events/e-1"


def expunge(api: Api, name: str = NAME, reason: str = "asked by the person") -> Any:
    return api.deliveries.ExpungeEvent(delivery_pb2.ExpungeEventRequest(name=name, reason=reason))


async def published(api: Api) -> EndpointKey:
    await api.tenant()
    await api.endpoint()
    await api.publish(
        event("e-1", PRIVATE.encode(), subject=PRIVATE, source=PRIVATE, attributes={"who": PRIVATE}),
        event("e-2", b"another"),
    )
    return (await endpoints.get(api.database, "acme", "billing")).key


async def attempted(api: Api, key: EndpointKey, outcome: Outcome, number: int = 1) -> None:
    made = Attempt(key, 1, "e-1", 1, number, datetime.now(UTC), 0.1, outcome, 500, None, f"no {PRIVATE}".encode())
    await attempts.append(api.database, [made])


async def everywhere(connection: asyncpg.Connection) -> list[str]:
    """The tables in which the private word stands, in any form that PostgreSQL shows."""
    tables = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    found = []
    for (table,) in await connection.fetch(tables):
        for (row,) in await connection.fetch(f'SELECT t::text FROM "{table}" t'):
            if PRIVATE in row or PRIVATE.encode().hex() in row:
                found.append(table)
    return found


async def test_a_settled_events_payload_is_gone_and_its_record_stays(api: Api, connection: asyncpg.Connection) -> None:
    key = await published(api)
    await attempted(api, key, Outcome.HTTP_ERROR)
    await attempted(api, key, Outcome.SUCCEEDED, 2)
    assert len(await everywhere(connection)) >= 2, "it is there before"
    answer = await expunge(api)
    assert answer.expunge_time.seconds > 0
    assert await everywhere(connection) == []
    read = await api.deliveries.GetEvent(delivery_pb2.GetEventRequest(name=NAME))
    assert (read.id, read.type) == ("e-1", "order.paid")
    assert (read.data, read.data_text, read.subject, dict(read.attributes)) == (b"", "", "", {})
    delivery = await api.deliveries.GetDelivery(
        delivery_pb2.GetDeliveryRequest(name="tenants/acme/endpoints/billing/deliveries/1")
    )
    assert delivery.state == delivery_pb2.Delivery.STATE_DELIVERED
    other = await api.deliveries.GetEvent(delivery_pb2.GetEventRequest(name="tenants/acme/events/e-2"))
    assert other.data_text == "another"
    again = await expunge(api)
    assert again.expunge_time == answer.expunge_time


async def test_a_payload_that_is_still_to_be_delivered_is_kept(api: Api) -> None:
    key = await published(api)
    await attempted(api, key, Outcome.HTTP_ERROR)
    error = await refused(expunge(api))
    assert error.reason == "EVENT_PENDING"
    read = await api.deliveries.GetEvent(delivery_pb2.GetEventRequest(name=NAME))
    assert read.data_text == PRIVATE


async def test_who_asks_says_why_and_for_what(api: Api) -> None:
    await published(api)
    assert (await refused(expunge(api, reason=""))).fields == ["reason"]
    assert (await refused(expunge(api, "tenants/acme/events/none"))).reason == "RESOURCE_NOT_FOUND"
    assert (await refused(expunge(api, "tenants/acme"))).fields == ["name"]
