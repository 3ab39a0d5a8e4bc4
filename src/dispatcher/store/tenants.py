"""Tenants. A tenant's row is locked first by every change of its configuration, so these happen one after another.

publish() takes no lock on it: it compares `routing_version`, which is fresh and random after each change that alters
where events go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

import asyncpg
from uuid_utils.compat import uuid7

from dispatcher.errors import AlreadyExistsError, PreconditionError
from dispatcher.model import CatchUp, Tenant, TenantState
from dispatcher.policy import NO_PUBLISH_QUOTA, NO_RETRY_OVERRIDES, PublishQuota, RetryOverrides
from dispatcher.store import filters
from dispatcher.store.changes import change, check_etag, tenant_name, tenant_not_found
from dispatcher.store.database import Connection, Database
from dispatcher.store.paging import SCAN_ROWS_MAX, Page, PageRequest, decode_token, encode_token
from dispatcher.store.settings_json import tenant_settings_from_json, tenant_settings_to_json

FILTER_RULES = {"labels": filters.TEXT_MAP}


@dataclass(frozen=True, slots=True)
class NewTenant:
    """What a caller says of a tenant to create; all of it checked."""

    name: str
    display_name: str
    labels: Mapping[str, str]
    require_registered_event_types: bool
    retry: RetryOverrides = NO_RETRY_OVERRIDES
    publish_quota: PublishQuota = NO_PUBLISH_QUOTA


# Columns by name everywhere: `*` would break statements prepared before a migration adds one.
INSERT_TENANT = """
INSERT INTO tenant (tenant_id, name, display_name, labels, require_registered_event_types, routing_version, etag,
                    settings, create_time, update_time)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, t, t FROM clock_timestamp() t
ON CONFLICT (name) WHERE delete_time IS NULL DO NOTHING
RETURNING tenant_id, name, display_name, labels, require_registered_event_types, routing_version, etag, create_time,
          update_time, settings, state, state_reason, resume_rate, resume_time"""


async def create(db: Database, new: NewTenant, *, validate_only: bool = False) -> Tenant:
    """Create a tenant under a uid never used before. Errors: AlreadyExistsError `TENANT_EXISTS`."""
    async with change(db, validate_only=validate_only) as connection:
        row = await connection.fetchrow(
            INSERT_TENANT,
            uuid7(),
            new.name,
            new.display_name,
            dict(new.labels),
            new.require_registered_event_types,
            uuid4(),
            uuid4(),
            tenant_settings_to_json(new.retry, new.publish_quota),
        )
        if row is None:
            resource = tenant_name(new.name)
            raise AlreadyExistsError(
                f"{resource} exists already", reason="TENANT_EXISTS", metadata={"resource": resource}
            )
    return _tenant(row)


SELECT_TENANT = """
SELECT tenant_id, name, display_name, labels, require_registered_event_types, routing_version, etag, create_time,
       update_time, settings, state, state_reason, resume_rate, resume_time
FROM tenant WHERE name = $1 AND delete_time IS NULL"""


async def get(db: Database, name: str) -> Tenant:
    """The live tenant of this name. Errors: NotFoundError."""
    row = await db.fetchrow(SELECT_TENANT, name)
    if row is None:
        raise tenant_not_found(name)
    return _tenant(row)


LIST_TENANTS = """
WITH scanned AS MATERIALIZED (
    SELECT tenant_id, name, display_name, labels, require_registered_event_types, routing_version, etag, create_time,
           update_time, settings, state, state_reason, resume_rate, resume_time
    FROM tenant WHERE delete_time IS NULL AND name > $1 ORDER BY name LIMIT $2
)
SELECT n.scan_count, n.scan_end, p.*
FROM (SELECT count(*) AS scan_count, max(name) AS scan_end FROM scanned) n
LEFT JOIN (
    SELECT * FROM scanned WHERE $3::jsonb IS NULL OR labels @> $3 ORDER BY name LIMIT $4
) p ON true
ORDER BY p.name"""


async def list_page(db: Database, request: PageRequest) -> Page[Tenant]:
    """Live tenants by name. Filter: `labels.KEY`. Errors: InvalidRequestError."""
    query = ("tenants", request.filter)
    labels = filters.parse(request.filter, FILTER_RULES).entries("labels")
    after = decode_token(query, request.token, (str,)) or ("",)
    rows = await db.fetch(LIST_TENANTS, *after, SCAN_ROWS_MAX, labels, request.size + 1)
    items, end = page_by_name(rows, request.size)
    return Page(tuple(_tenant(row) for row in items), encode_token(query, (end,)) if end else "")


async def update(
    db: Database, name: str, apply: Callable[[Tenant], Tenant], *, etag: str = "", validate_only: bool = False
) -> Tenant:
    """Change a tenant: `apply` gets the present record and returns the wanted one (of which only what callers may set
    is taken). Nothing is written where nothing changes. Errors: NotFoundError, EtagMismatchError, what `apply` raises.
    """
    async with change(db, validate_only=validate_only) as connection:
        before = await lock(connection, name)
        check_etag(tenant_name(name), before.etag, etag)
        wanted = apply(before)
        after = replace(
            before,
            display_name=wanted.display_name,
            labels=dict(wanted.labels),
            require_registered_event_types=wanted.require_registered_event_types,
            retry=wanted.retry,
            publish_quota=wanted.publish_quota,
        )
        if after != before:
            after = await _write(connection, before, after)
    return after


# Keys of the stored settings that this release does not know are kept.
UPDATE_TENANT = """
UPDATE tenant SET display_name = $2, labels = $3, require_registered_event_types = $4, routing_version = $5, etag = $6,
                  settings = settings || $7::jsonb, update_time = clock_timestamp()
WHERE tenant_id = $1
RETURNING tenant_id, name, display_name, labels, require_registered_event_types, routing_version, etag, create_time,
          update_time, settings, state, state_reason, resume_rate, resume_time"""


async def _write(connection: Connection, before: Tenant, after: Tenant) -> Tenant:
    # The quota travels with the cached routes.
    same_routing = (before.require_registered_event_types, before.publish_quota) == (
        after.require_registered_event_types,
        after.publish_quota,
    )
    (row,) = await connection.fetch(
        UPDATE_TENANT,
        before.tenant_id,
        after.display_name,
        after.labels,
        after.require_registered_event_types,
        before.routing_version if same_routing else uuid4(),
        uuid4(),
        tenant_settings_to_json(after.retry, after.publish_quota),
    )
    return _tenant(row)


SET_STATE = """
UPDATE tenant SET state = $2, state_reason = $3, etag = $4, update_time = clock_timestamp(), resume_rate = $5,
                  resume_time = CASE WHEN $5::double precision IS NULL THEN NULL ELSE clock_timestamp() END
WHERE tenant_id = $1
RETURNING tenant_id, name, display_name, labels, require_registered_event_types, routing_version, etag, create_time,
          update_time, settings, state, state_reason, resume_rate, resume_time"""


async def set_state(
    db: Database, name: str, state: TenantState, reason: str, rate_per_s: float | None, *, etag: str = ""
) -> Tenant:
    """Pause or resume a tenant; after a resume what waits goes out at `rate_per_s` per endpoint, None for no limit.

    Idempotent. The owners of its endpoints see it by the tenant's update_time. Errors: NotFoundError,
    EtagMismatchError.
    """
    async with change(db) as connection:
        before = await lock(connection, name)
        check_etag(tenant_name(name), before.etag, etag)
        if (before.state, before.state_reason, before.catch_up, rate_per_s) == (state, reason, None, None):
            return before
        (row,) = await connection.fetch(SET_STATE, before.tenant_id, state, reason, uuid4(), rate_per_s)
        return _tenant(row)


HAS_ENDPOINTS = "SELECT EXISTS (SELECT FROM endpoint WHERE tenant_id = $1 AND delete_time IS NULL)"
DELETE_EVENT_TYPES = "DELETE FROM event_type WHERE tenant_id = $1"
DELETE_TENANT = """
UPDATE tenant SET delete_time = clock_timestamp(), update_time = clock_timestamp(), routing_version = $2, etag = $3
WHERE tenant_id = $1"""


async def delete(db: Database, name: str, *, etag: str = "", validate_only: bool = False) -> None:
    """Delete a tenant and its event types; the name may be used again, the uid never is.

    Errors: NotFoundError, EtagMismatchError, PreconditionError `TENANT_NOT_EMPTY`.
    """
    async with change(db, validate_only=validate_only) as connection:
        tenant = await lock(connection, name)
        check_etag(tenant_name(name), tenant.etag, etag)
        if await connection.fetchval(HAS_ENDPOINTS, tenant.tenant_id):
            raise PreconditionError(
                f"{tenant_name(name)} has endpoints; delete them first",
                reason="TENANT_NOT_EMPTY",
                subject=tenant_name(name),
            )
        await connection.execute(DELETE_EVENT_TYPES, tenant.tenant_id)
        await connection.execute(DELETE_TENANT, tenant.tenant_id, uuid4(), uuid4())


LOCK_TENANT = """
SELECT tenant_id, name, display_name, labels, require_registered_event_types, routing_version, etag, create_time,
       update_time, settings, state, state_reason, resume_rate, resume_time
FROM tenant WHERE name = $1 AND delete_time IS NULL FOR NO KEY UPDATE"""


async def lock(connection: Connection, name: str) -> Tenant:
    """Lock the live tenant of this name, before any of its endpoints. Errors: NotFoundError."""
    row = await connection.fetchrow(LOCK_TENANT, name)
    if row is None:
        raise tenant_not_found(name)
    return _tenant(row)


CHANGE_ROUTING = "UPDATE tenant SET routing_version = $2 WHERE tenant_id = $1"


async def change_routing(connection: Connection, tenant_id: UUID) -> None:
    """Make every cached route of a locked tenant stale. The tenant itself, and so its etag, stays as it is."""
    await connection.execute(CHANGE_ROUTING, tenant_id, uuid4())


def page_by_name(rows: list[asyncpg.Record], size: int) -> tuple[list[asyncpg.Record], str]:
    """Of the rows of a list by name: those of the page, and the name it ends with; empty where nothing can follow.

    Each row holds `scan_count` and `scan_end`, the names read; a page without items is one row without a name.
    """
    found = [row for row in rows if row["name"] is not None]
    if len(found) > size:
        return found[:size], found[size - 1]["name"]
    return found, rows[0]["scan_end"] if rows[0]["scan_count"] == SCAN_ROWS_MAX else ""


def _tenant(row: asyncpg.Record) -> Tenant:
    retry, quota = tenant_settings_from_json(row["settings"])
    return Tenant(
        tenant_id=row["tenant_id"],
        name=row["name"],
        display_name=row["display_name"],
        labels=row["labels"],
        require_registered_event_types=row["require_registered_event_types"],
        routing_version=row["routing_version"],
        etag=row["etag"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        retry=retry,
        publish_quota=quota,
        state=TenantState(row["state"]),
        state_reason=row["state_reason"],
        catch_up=None if row["resume_rate"] is None else CatchUp(row["resume_rate"], row["resume_time"]),
    )
