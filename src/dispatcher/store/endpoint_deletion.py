"""Deletion of an endpoint into a tombstone, so that neither its id nor its sequence is ever used again."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from uuid_utils.compat import uuid7

from dispatcher.errors import PreconditionError
from dispatcher.model import CommandKind, EndpointKey
from dispatcher.store import endpoints, tenants
from dispatcher.store.changes import change, check_etag, endpoint_name
from dispatcher.store.database import Connection, Database

REASON_DELETED = "ENDPOINT_DELETED"
"""Reason on the skip of each row that was pending when its endpoint was deleted."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a deletion left: rows up to `skip_through` are to be skipped by the owner; None where none was pending."""

    key: EndpointKey
    skip_through: int | None


DELETE_ENDPOINT = """
UPDATE endpoint SET delete_time = t, update_time = t, etag = $3
FROM clock_timestamp() t
WHERE tenant_id = $1 AND endpoint_id = $2"""
# Nothing is sent for a deleted endpoint, its backlog included, so no secret outlives it.
DELETE_KEYS = "DELETE FROM signing_key WHERE tenant_id = $1 AND endpoint_id = $2"
APPEND_SKIP = """
INSERT INTO command (tenant_id, command_id, endpoint_id, partition, kind, arguments, actor, create_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, clock_timestamp())"""


async def delete(
    db: Database,
    tenant: str,
    name: str,
    *,
    actor: str,
    force: bool = False,
    etag: str = "",
    validate_only: bool = False,
) -> Deletion:
    """Delete an endpoint; with a backlog only by `force`, and then its owner gets a SKIP_BACKLOG command of `actor`.

    Errors: NotFoundError, EtagMismatchError, PreconditionError `ENDPOINT_HAS_BACKLOG`.
    """
    async with change(db, validate_only=validate_only) as connection:
        locked = await endpoints.lock(connection, tenant, name)
        key = locked.endpoint.key
        check_etag(endpoint_name(tenant, name), locked.endpoint.etag, etag)
        # A statement after the lock sees every row published before it, and none can follow.
        backlog_end = await _backlog_end(connection, key)
        if backlog_end is not None and not force:
            raise PreconditionError(
                f"{endpoint_name(tenant, name)} has deliveries pending; wait for them, or delete with force",
                reason="ENDPOINT_HAS_BACKLOG",
                subject=endpoint_name(tenant, name),
            )
        await connection.execute(DELETE_ENDPOINT, key.tenant_id, key.endpoint_id, uuid4())
        await connection.execute(DELETE_KEYS, key.tenant_id, key.endpoint_id)
        await tenants.change_routing(connection, key.tenant_id)
        if backlog_end is not None:
            await _append_skip(connection, key, backlog_end, actor)
    return Deletion(key, backlog_end)


async def _append_skip(connection: Connection, key: EndpointKey, through_seq: int, actor: str) -> None:
    await connection.execute(
        APPEND_SKIP,
        key.tenant_id,
        uuid7(),
        key.endpoint_id,
        key.partition,
        CommandKind.SKIP_BACKLOG,
        {"reason": REASON_DELETED, "through_seq": through_seq},
        actor,
    )


SELECT_CURSOR = "SELECT seq, time FROM cursor WHERE tenant_id = $1 AND endpoint_id = $2"
# An attempt's time is of the clock of the instance that made it, which may lag behind the database's.
HAS_UNSETTLED = """
SELECT EXISTS (
    SELECT FROM outbox o
    WHERE o.tenant_id = $1 AND o.endpoint_id = $2 AND o.seq > $3 AND o.time >= $4
      AND NOT EXISTS (
        SELECT FROM decision d
        WHERE d.tenant_id = o.tenant_id AND d.endpoint_id = o.endpoint_id AND d.seq = o.seq AND d.event_id = o.event_id)
      AND NOT EXISTS (
        SELECT FROM attempt a
        WHERE a.tenant_id = o.tenant_id AND a.endpoint_id = o.endpoint_id AND a.seq = o.seq AND a.event_id = o.event_id
          AND a.outcome = 1 AND a.time >= $4 - interval '1 hour')
)"""
SELECT_HIGHEST = """
SELECT seq FROM outbox WHERE tenant_id = $1 AND endpoint_id = $2 AND time >= $3 ORDER BY seq DESC LIMIT 1"""


async def _backlog_end(connection: Connection, key: EndpointKey) -> int | None:
    """The highest sequence of an endpoint that has unsettled rows, None where all are settled."""
    ((seq, time),) = await connection.fetch(SELECT_CURSOR, key.tenant_id, key.endpoint_id)
    if not await connection.fetchval(HAS_UNSETTLED, key.tenant_id, key.endpoint_id, seq, time):
        return None
    highest: int = await connection.fetchval(SELECT_HIGHEST, key.tenant_id, key.endpoint_id, time)
    return highest
