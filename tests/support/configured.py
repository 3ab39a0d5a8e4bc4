"""Short ways to a tenant with endpoints, published events, attempts and decisions, for tests of the store's reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from dispatcher.model import (
    Endpoint,
    EndpointKey,
    EndpointSettings,
    EndpointState,
    NewEvent,
    OrderingMode,
    Outcome,
    Tenant,
    TracePropagation,
)
from dispatcher.store import endpoints, publish, routes, tenants
from dispatcher.store.database import Database
from dispatcher.store.signing_keys import NewSigningKey

SETTINGS = EndpointSettings(
    "https://receiver.example/", 15.0, {"x-team": "a"}, 32, OrderingMode.ORDERED, TracePropagation.NONE
)


async def make_tenant(db: Database, name: str = "acme", **changed: Any) -> Tenant:
    return await tenants.create(db, replace(tenants.NewTenant(name, "Acme", {}, False), **changed))


def new_endpoint(name: str, **changed: Any) -> endpoints.NewEndpoint:
    new = endpoints.NewEndpoint(name, "", {}, ("*",), EndpointState.ACTIVE, "", SETTINGS)
    return replace(new, **changed)


async def make_endpoint(db: Database, name: str = "billing", tenant: str = "acme", **changed: Any) -> Endpoint:
    return await endpoints.create(db, tenant, new_endpoint(name, **changed), [NewSigningKey("k1", b"sealed")])


def new_event(event_id: str, event_type: str = "order.paid", data: bytes = b"{}", key: str | None = None) -> NewEvent:
    attributes: Mapping[str, str] = {"region": "eu"}
    return NewEvent(event_id, None, event_type, data, "application/json", key, attributes, "src", "sub", None, None)


async def publish_events(db: Database, events: Sequence[NewEvent], tenant: str = "acme") -> datetime:
    """Publish to every endpoint whose patterns hold `*` or the type itself. Returns the partition time."""
    known = await routes.load(db, tenant)
    assert known is not None
    fan_out = tuple(
        tuple(sorted({*known.subscriptions.get("*", ()), *known.subscriptions.get(event.type, ())})) for event in events
    )
    request = publish.PublishRequest(known.tenant_id, tenant, known.version, tuple(events), fan_out)
    async with db.acquire() as connection:
        result = await publish.publish(connection, [request], lock_timeout_s=5.0, timeout_s=30.0)
    assert result.requests[0].verdict is publish.Verdict.ACCEPTED
    return result.published_at


INSERT_ATTEMPT = """
INSERT INTO attempt (tenant_id, endpoint_id, seq, epoch, number, time, event_id, duration_us, outcome, status_code,
                     error, response_excerpt)
VALUES ($1, $2, $3, 1, $4, clock_timestamp() + $5::interval, $6, 2000, $7, $8, $9, $10)"""


async def attempted(
    db: Database, key: EndpointKey, seq: int, event_id: str, outcome: Outcome, number: int = 1, **when: float
) -> None:
    failed = outcome is not Outcome.SUCCEEDED
    await db.execute(
        INSERT_ATTEMPT,
        key.tenant_id,
        key.endpoint_id,
        seq,
        number,
        timedelta(**when),
        event_id,
        outcome,
        500 if failed else 200,
        "HTTP 500" if failed else None,
        b"oops\0" if failed else None,
    )


INSERT_DECISION = """
INSERT INTO decision (tenant_id, endpoint_id, seq, kind, event_id, reason, actor, time)
VALUES ($1, $2, $3, $4, $5, 'ATTEMPTS_EXHAUSTED', 'dispatcher', clock_timestamp())"""


async def decided(db: Database, key: EndpointKey, seq: int, event_id: str, kind: int) -> None:
    await db.execute(INSERT_DECISION, key.tenant_id, key.endpoint_id, seq, kind, event_id)


async def routing_version(db: Database, tenant: str = "acme") -> object:
    return (await tenants.get(db, tenant)).routing_version


def some_etag() -> str:
    return str(uuid4())
