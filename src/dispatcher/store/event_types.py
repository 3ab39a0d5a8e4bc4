"""A tenant's catalogue of event types; it matters to publishing only where the tenant requires registration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from uuid import uuid4

import asyncpg

from dispatcher.errors import AlreadyExistsError
from dispatcher.model import EventType, Tenant
from dispatcher.store import filters, tenants
from dispatcher.store.changes import change, check_etag, event_type_name, event_type_not_found
from dispatcher.store.database import Connection, Database
from dispatcher.store.paging import SCAN_ROWS_MAX, Page, PageRequest, decode_token, encode_token

FILTER_RULES = {"archived": filters.FLAG, "labels": filters.TEXT_MAP}


@dataclass(frozen=True, slots=True)
class NewEventType:
    """What a caller says of an event type to register; all of it checked."""

    name: str
    description: str
    labels: Mapping[str, str]
    archived: bool = False


INSERT_EVENT_TYPE = """
INSERT INTO event_type (tenant_id, name, description, labels, archived, etag, create_time, update_time)
SELECT $1, $2, $3, $4, $5, $6, t, t FROM clock_timestamp() t
ON CONFLICT (tenant_id, name) DO NOTHING
RETURNING tenant_id, name, description, labels, archived, etag, create_time, update_time"""


async def create(db: Database, tenant: str, new: NewEventType, *, validate_only: bool = False) -> EventType:
    """Register an event type. Errors: NotFoundError (tenant), AlreadyExistsError `EVENT_TYPE_EXISTS`."""
    async with change(db, validate_only=validate_only) as connection:
        owner = await tenants.lock(connection, tenant)
        row = await connection.fetchrow(
            INSERT_EVENT_TYPE, owner.tenant_id, new.name, new.description, dict(new.labels), new.archived, uuid4()
        )
        if row is None:
            resource = event_type_name(tenant, new.name)
            raise AlreadyExistsError(
                f"{resource} exists already", reason="EVENT_TYPE_EXISTS", metadata={"resource": resource}
            )
        await _change_routing(connection, owner)
    return _event_type(row)


SELECT_EVENT_TYPE = """
SELECT e.tenant_id, e.name, e.description, e.labels, e.archived, e.etag, e.create_time, e.update_time
FROM tenant t JOIN event_type e ON e.tenant_id = t.tenant_id
WHERE t.name = $1 AND t.delete_time IS NULL AND e.name = $2"""


async def get(db: Database, tenant: str, name: str) -> EventType:
    """A registered event type. Errors: NotFoundError."""
    row = await db.fetchrow(SELECT_EVENT_TYPE, tenant, name)
    if row is None:
        raise event_type_not_found(tenant, name)
    return _event_type(row)


LIST_EVENT_TYPES = """
WITH scanned AS MATERIALIZED (
    SELECT tenant_id, name, description, labels, archived, etag, create_time, update_time
    FROM event_type WHERE tenant_id = $1 AND name > $2 ORDER BY name LIMIT $3
)
SELECT n.scan_count, n.scan_end, p.*
FROM (SELECT count(*) AS scan_count, max(name) AS scan_end FROM scanned) n
LEFT JOIN (
    SELECT * FROM scanned
    WHERE ($4::jsonb IS NULL OR labels @> $4) AND ($5::boolean IS NULL OR archived = $5) ORDER BY name LIMIT $6
) p ON true
ORDER BY p.name"""


async def list_page(db: Database, tenant: str, request: PageRequest) -> Page[EventType]:
    """A tenant's event types by name. Filter: `archived`, `labels.KEY`. Errors: NotFoundError, InvalidRequestError."""
    query = ("eventTypes", tenant, request.filter)
    wanted = filters.parse(request.filter, FILTER_RULES)
    after = decode_token(query, request.token, (str,)) or ("",)
    owner = await tenants.get(db, tenant)
    rows = await db.fetch(
        LIST_EVENT_TYPES,
        owner.tenant_id,
        *after,
        SCAN_ROWS_MAX,
        wanted.entries("labels"),
        wanted.flag("archived"),
        request.size + 1,
    )
    items, end = tenants.page_by_name(rows, request.size)
    return Page(tuple(_event_type(row) for row in items), encode_token(query, (end,)) if end else "")


LOCK_EVENT_TYPE = """
SELECT tenant_id, name, description, labels, archived, etag, create_time, update_time
FROM event_type WHERE tenant_id = $1 AND name = $2 FOR UPDATE"""
UPDATE_EVENT_TYPE = """
UPDATE event_type SET description = $3, labels = $4, archived = $5, etag = $6, update_time = clock_timestamp()
WHERE tenant_id = $1 AND name = $2
RETURNING tenant_id, name, description, labels, archived, etag, create_time, update_time"""


async def update(
    db: Database,
    tenant: str,
    name: str,
    apply: Callable[[EventType], EventType],
    *,
    etag: str = "",
    validate_only: bool = False,
) -> EventType:
    """Change an event type: `apply` gets the present record and returns the wanted one.

    Errors: NotFoundError, EtagMismatchError, what `apply` raises.
    """
    async with change(db, validate_only=validate_only) as connection:
        owner, before = await _lock(connection, tenant, name)
        check_etag(event_type_name(tenant, name), before.etag, etag)
        wanted = apply(before)
        after = replace(before, description=wanted.description, labels=dict(wanted.labels), archived=wanted.archived)
        if after == before:
            return before
        (row,) = await connection.fetch(
            UPDATE_EVENT_TYPE, owner.tenant_id, name, after.description, after.labels, after.archived, uuid4()
        )
        if after.archived != before.archived:
            await _change_routing(connection, owner)
    return _event_type(row)


DELETE_EVENT_TYPE = "DELETE FROM event_type WHERE tenant_id = $1 AND name = $2"


async def delete(db: Database, tenant: str, name: str, *, etag: str = "", validate_only: bool = False) -> None:
    """Remove an event type from the catalogue. Errors: NotFoundError, EtagMismatchError."""
    async with change(db, validate_only=validate_only) as connection:
        owner, present = await _lock(connection, tenant, name)
        check_etag(event_type_name(tenant, name), present.etag, etag)
        await connection.execute(DELETE_EVENT_TYPE, owner.tenant_id, name)
        await _change_routing(connection, owner)


async def _lock(connection: Connection, tenant: str, name: str) -> tuple[Tenant, EventType]:
    owner = await tenants.lock(connection, tenant)
    row = await connection.fetchrow(LOCK_EVENT_TYPE, owner.tenant_id, name)
    if row is None:
        raise event_type_not_found(tenant, name)
    return owner, _event_type(row)


async def _change_routing(connection: Connection, owner: Tenant) -> None:
    """Cached routes hold the catalogue only where registration is required."""
    if owner.require_registered_event_types:
        await tenants.change_routing(connection, owner.tenant_id)


def _event_type(row: asyncpg.Record) -> EventType:
    return EventType(
        tenant_id=row["tenant_id"],
        name=row["name"],
        description=row["description"],
        labels=row["labels"],
        archived=row["archived"],
        etag=row["etag"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )
