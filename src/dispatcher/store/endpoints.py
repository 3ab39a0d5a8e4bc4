"""Endpoints: created once, changed by revisions, deleted into a tombstone (`endpoint_deletion`).

Every change locks the tenant, then the endpoint. The endpoint's row is what publish() locks, too, so a change waits for
the batches under way, and a deletion knows exactly which rows were published before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from uuid_utils.compat import uuid7

from dispatcher.credentials import Authentication
from dispatcher.errors import AlreadyExistsError
from dispatcher.model import CatchUp, Endpoint, EndpointKey, EndpointSettings, EndpointState
from dispatcher.store import filters, signing_keys, tenants
from dispatcher.store.authentication_json import authentication_from_json, authentication_to_json
from dispatcher.store.changes import change, check_etag, endpoint_name, endpoint_not_found
from dispatcher.store.database import Connection, Database
from dispatcher.store.paging import SCAN_ROWS_MAX, Page, PageRequest, decode_token, encode_token
from dispatcher.store.settings_json import settings_from_json, settings_to_json
from dispatcher.store.signing_keys import NewSigningKey

FILTER_RULES = {
    "state": filters.Rule(filters.Kind.WORD, words=frozenset(state.value for state in EndpointState)),
    "labels": filters.TEXT_MAP,
}


@dataclass(frozen=True, slots=True)
class NewEndpoint:
    """What a caller says of an endpoint to create; all of it checked.

    `endpoint_id` is a fresh UUIDv7 by default; a caller that binds sealed keys to it makes it beforehand.
    """

    name: str
    description: str
    labels: Mapping[str, str]
    event_types: tuple[str, ...]
    state: EndpointState
    state_reason: str
    settings: EndpointSettings
    endpoint_id: UUID = field(default_factory=uuid7)
    authentication: Authentication | None = None
    sealed_credentials: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LockedEndpoint:
    """A live endpoint locked by the transaction. `stored_settings` may hold keys of a newer release."""

    endpoint: Endpoint
    stored_settings: Mapping[str, Any]


INSERT_ENDPOINT = """
INSERT INTO endpoint (tenant_id, endpoint_id, name, partition, description, labels, event_types, state, state_reason,
                      revision, settings, etag, create_time, update_time, authentication, sealed_credentials)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, 1, $10, $11, t, t, $12, $13 FROM clock_timestamp() t
ON CONFLICT (tenant_id, name) DO NOTHING
RETURNING tenant_id, endpoint_id, name, description, labels, event_types, state, state_reason, revision, settings, etag,
          create_time, update_time, delete_time, resume_rate, resume_time, authentication,
          sealed_credentials"""
# publish() searches no further back than the cursor's day, so its time must not be older than the endpoint.
INSERT_CURSOR = "INSERT INTO cursor (tenant_id, endpoint_id, seq, time) VALUES ($1, $2, 0, clock_timestamp())"


async def create(
    db: Database, tenant: str, new: NewEndpoint, keys: Sequence[NewSigningKey], *, validate_only: bool = False
) -> Endpoint:
    """Create an endpoint with its first revision, cursor and signing keys.

    Errors: NotFoundError (tenant), AlreadyExistsError `ENDPOINT_EXISTS`, or `ENDPOINT_ID_TOMBSTONED` where the name was
    used by an endpoint that has been deleted: a sequence never starts again.
    """
    async with change(db, validate_only=validate_only) as connection:
        owner = await tenants.lock(connection, tenant)
        key = EndpointKey(owner.tenant_id, new.endpoint_id)
        row = await _insert(connection, key, new)
        if row is None:
            raise await _name_taken(connection, tenant, owner.tenant_id, new.name)
        await _insert_revision(connection, key, 1, row["settings"])
        await connection.execute(INSERT_CURSOR, key.tenant_id, key.endpoint_id)
        await signing_keys.insert(connection, key, keys)
        await tenants.change_routing(connection, owner.tenant_id)
    return endpoint_of(row)


async def _insert(connection: Connection, key: EndpointKey, new: NewEndpoint) -> asyncpg.Record | None:
    return await connection.fetchrow(
        INSERT_ENDPOINT,
        key.tenant_id,
        key.endpoint_id,
        new.name,
        key.partition,
        new.description,
        dict(new.labels),
        list(new.event_types),
        new.state,
        new.state_reason,
        settings_to_json(new.settings),
        uuid4(),
        authentication_to_json(new.authentication),
        new.sealed_credentials,
    )


IS_TOMBSTONE = "SELECT delete_time IS NOT NULL FROM endpoint WHERE tenant_id = $1 AND name = $2"


async def _name_taken(connection: Connection, tenant: str, tenant_id: UUID, name: str) -> AlreadyExistsError:
    resource = endpoint_name(tenant, name)
    if await connection.fetchval(IS_TOMBSTONE, tenant_id, name):
        return AlreadyExistsError(
            f"{resource} has been deleted, and its id is never used again; choose another",
            reason="ENDPOINT_ID_TOMBSTONED",
            metadata={"resource": resource},
        )
    return AlreadyExistsError(f"{resource} exists already", reason="ENDPOINT_EXISTS", metadata={"resource": resource})


SELECT_ENDPOINT = """
SELECT e.tenant_id, e.endpoint_id, e.name, e.description, e.labels, e.event_types, e.state, e.state_reason, e.revision,
       e.settings, e.etag, e.create_time, e.update_time, e.delete_time, e.resume_rate, e.resume_time,
       e.authentication, e.sealed_credentials
FROM tenant t JOIN endpoint e ON e.tenant_id = t.tenant_id
WHERE t.name = $1 AND t.delete_time IS NULL AND e.name = $2"""


async def get(db: Database, tenant: str, name: str, *, deleted_too: bool = False) -> Endpoint:
    """An endpoint by name; `deleted_too` finds tombstones as well, whose history can still be read.

    Errors: NotFoundError.
    """
    row = await db.fetchrow(SELECT_ENDPOINT, tenant, name)
    if row is None or (row["delete_time"] is not None and not deleted_too):
        raise endpoint_not_found(tenant, name)
    return endpoint_of(row)


LIST_ENDPOINTS = """
WITH scanned AS MATERIALIZED (
    SELECT tenant_id, endpoint_id, name, description, labels, event_types, state, state_reason, revision, settings,
           etag, create_time, update_time, delete_time, resume_rate, resume_time, authentication,
          sealed_credentials
    FROM endpoint WHERE tenant_id = $1 AND name > $2 ORDER BY name LIMIT $3
)
SELECT n.scan_count, n.scan_end, p.*
FROM (SELECT count(*) AS scan_count, max(name) AS scan_end FROM scanned) n
LEFT JOIN (
    SELECT * FROM scanned
    WHERE delete_time IS NULL AND ($4::jsonb IS NULL OR labels @> $4) AND ($5::text IS NULL OR state = $5)
    ORDER BY name LIMIT $6
) p ON true
ORDER BY p.name"""


async def list_page(db: Database, tenant: str, request: PageRequest) -> Page[Endpoint]:
    """A tenant's live endpoints by name. Filter: `state`, `labels.KEY`. Errors: NotFoundError, InvalidRequestError."""
    query = ("endpoints", tenant, request.filter)
    wanted = filters.parse(request.filter, FILTER_RULES)
    after = decode_token(query, request.token, (str,)) or ("",)
    owner = await tenants.get(db, tenant)
    rows = await db.fetch(
        LIST_ENDPOINTS,
        owner.tenant_id,
        *after,
        SCAN_ROWS_MAX,
        wanted.entries("labels"),
        wanted.text("state"),
        request.size + 1,
    )
    items, end = tenants.page_by_name(rows, request.size)
    return Page(tuple(endpoint_of(row) for row in items), encode_token(query, (end,)) if end else "")


async def update(
    db: Database,
    tenant: str,
    name: str,
    apply: Callable[[Endpoint], Endpoint],
    *,
    etag: str = "",
    validate_only: bool = False,
) -> Endpoint:
    """Change an endpoint: `apply` gets the present record and returns the wanted one, of which only what callers may
    set is taken. Changed settings make a new revision; nothing is written where nothing changes.

    Only a change of `event_types` makes cached routes stale: a paused endpoint still gets its rows.
    Errors: NotFoundError, EtagMismatchError, what `apply` raises.
    """
    async with change(db, validate_only=validate_only) as connection:
        locked = await lock(connection, tenant, name)
        before = locked.endpoint
        check_etag(endpoint_name(tenant, name), before.etag, etag)
        after = _merged(before, apply(before))
        if after == before:
            return before
        stored = settings_to_json(after.settings, locked.stored_settings)
        if after.revision != before.revision:
            await _insert_revision(connection, before.key, after.revision, stored)
        if after.event_types != before.event_types:
            await tenants.change_routing(connection, before.key.tenant_id)
        return await _write(connection, after, stored)


def _merged(before: Endpoint, wanted: Endpoint) -> Endpoint:
    """`before` with what callers may set taken from `wanted`."""
    return replace(
        before,
        description=wanted.description,
        labels=dict(wanted.labels),
        event_types=wanted.event_types,
        state=wanted.state,
        state_reason=wanted.state_reason,
        settings=wanted.settings,
        authentication=wanted.authentication,
        sealed_credentials=wanted.sealed_credentials,
        revision=before.revision + (wanted.settings != before.settings),
    )


UPDATE_ENDPOINT = """
UPDATE endpoint SET description = $3, labels = $4, event_types = $5, state = $6, state_reason = $7, revision = $8,
                    settings = $9, etag = $10, update_time = clock_timestamp(), authentication = $11,
                    sealed_credentials = $12
WHERE tenant_id = $1 AND endpoint_id = $2
RETURNING tenant_id, endpoint_id, name, description, labels, event_types, state, state_reason, revision, settings, etag,
          create_time, update_time, delete_time, resume_rate, resume_time, authentication,
          sealed_credentials"""


async def _write(connection: Connection, after: Endpoint, stored_settings: Mapping[str, Any]) -> Endpoint:
    (row,) = await connection.fetch(
        UPDATE_ENDPOINT,
        after.key.tenant_id,
        after.key.endpoint_id,
        after.description,
        after.labels,
        list(after.event_types),
        after.state,
        after.state_reason,
        after.revision,
        stored_settings,
        uuid4(),
        authentication_to_json(after.authentication),
        after.sealed_credentials,
    )
    return endpoint_of(row)


INSERT_REVISION = """
INSERT INTO endpoint_revision (tenant_id, endpoint_id, revision, settings, create_time)
VALUES ($1, $2, $3, $4, clock_timestamp())"""


async def _insert_revision(
    connection: Connection, key: EndpointKey, revision: int, stored_settings: Mapping[str, Any]
) -> None:
    await connection.execute(INSERT_REVISION, key.tenant_id, key.endpoint_id, revision, stored_settings)


LOCK_ENDPOINT = """
SELECT tenant_id, endpoint_id, name, description, labels, event_types, state, state_reason, revision, settings, etag,
       create_time, update_time, delete_time, resume_rate, resume_time, authentication,
          sealed_credentials
FROM endpoint WHERE tenant_id = $1 AND name = $2 AND delete_time IS NULL FOR UPDATE"""


async def lock(connection: Connection, tenant: str, name: str) -> LockedEndpoint:
    """Lock the tenant, then its live endpoint of this name; waits for batches that publish to it.

    Errors: NotFoundError.
    """
    owner = await tenants.lock(connection, tenant)
    row = await connection.fetchrow(LOCK_ENDPOINT, owner.tenant_id, name)
    if row is None:
        raise endpoint_not_found(tenant, name)
    return LockedEndpoint(endpoint_of(row), row["settings"])


TOUCH_ENDPOINT = """
UPDATE endpoint SET etag = $3, update_time = clock_timestamp() WHERE tenant_id = $1 AND endpoint_id = $2
RETURNING tenant_id, endpoint_id, name, description, labels, event_types, state, state_reason, revision, settings, etag,
          create_time, update_time, delete_time, resume_rate, resume_time, authentication,
          sealed_credentials"""


async def touch(connection: Connection, key: EndpointKey) -> Endpoint:
    """Mark a locked endpoint as changed, so that its owner reads it anew and old etags do not fit any more."""
    (row,) = await connection.fetch(TOUCH_ENDPOINT, key.tenant_id, key.endpoint_id, uuid4())
    return endpoint_of(row)


def endpoint_of(row: asyncpg.Record) -> Endpoint:
    """An endpoint from the columns that every statement here reads."""
    return Endpoint(
        key=EndpointKey(row["tenant_id"], row["endpoint_id"]),
        name=row["name"],
        description=row["description"],
        labels=row["labels"],
        event_types=tuple(row["event_types"]),
        state=EndpointState(row["state"]),
        state_reason=row["state_reason"],
        settings=settings_from_json(row["settings"]),
        revision=row["revision"],
        etag=row["etag"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        delete_time=row["delete_time"],
        authentication=authentication_from_json(row["authentication"]),
        sealed_credentials=row["sealed_credentials"],
        catch_up=None if row["resume_rate"] is None else CatchUp(row["resume_rate"], row["resume_time"]),
    )
