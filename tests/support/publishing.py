"""Tenants, endpoints and requests for tests of the publish path, made through the store as the API makes them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from uuid_utils.compat import uuid7

from dispatcher.model import (
    Endpoint,
    EndpointKey,
    EndpointSettings,
    EndpointState,
    NewEvent,
    OrderingMode,
    Tenant,
    TracePropagation,
)
from dispatcher.store import endpoints, tenants
from dispatcher.store.database import Database
from dispatcher.store.endpoints import NewEndpoint
from dispatcher.store.publish import PublishRequest
from dispatcher.store.tenants import NewTenant

SETTINGS = EndpointSettings(
    url="https://receiver.example/hook",
    timeout_s=5.0,
    headers={},
    max_in_flight=4,
    ordering_mode=OrderingMode.ORDERED,
    trace_propagation=TracePropagation.NONE,
)


async def make_tenant(db: Database, name: str = "acme") -> Tenant:
    return await tenants.create(db, NewTenant(name, "", {}, require_registered_event_types=False))


async def make_endpoint(
    db: Database,
    name: str,
    *,
    tenant: str = "acme",
    event_types: Sequence[str] = ("*",),
    settings: EndpointSettings = SETTINGS,
    state: EndpointState = EndpointState.ACTIVE,
) -> Endpoint:
    """An endpoint without signing keys."""
    new = NewEndpoint(name, "", {}, tuple(event_types), state, "", settings)
    return await endpoints.create(db, tenant, new, [])


def new_event(
    event_id: str | None = None,
    data: bytes = b"{}",
    *,
    type: str = "order.created",  # noqa: A002 -- the event's own word
    key: str | None = None,
) -> NewEvent:
    """An event; one with an id given is deduplicated by its data."""
    return NewEvent(
        event_id=event_id or str(uuid7()),
        digest=None if event_id is None else hashlib.sha256(data).digest(),
        type=type,
        data=data,
        content_type="application/json",
        ordering_key=key,
        attributes={},
        source=None,
        subject=None,
        time=None,
        traceparent=None,
    )


async def request_of(
    db: Database, events: Sequence[NewEvent], to: Sequence[EndpointKey], *, tenant: str = "acme", chain: int = 0
) -> PublishRequest:
    """A request under the tenant's present routing version, every event to all of `to`."""
    current = await tenants.get(db, tenant)
    return PublishRequest(
        current.tenant_id, tenant, current.routing_version, tuple(events), tuple(tuple(to) for _ in events), chain
    )
