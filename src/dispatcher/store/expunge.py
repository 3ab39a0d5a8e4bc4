"""Removal of one event's payload on request, everywhere that it is kept. That the event existed, and what became of its
deliveries, stays on record."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from dispatcher.errors import NotFoundError, PreconditionError
from dispatcher.store import tenants
from dispatcher.store.changes import change
from dispatcher.store.database import Connection, Database

# What appends rows, publishing included, locks endpoints in this order: behind these locks no row of the event is on
# its way, and each statement that follows sees all that was committed before.
LOCK_ENDPOINTS = "SELECT FROM endpoint WHERE tenant_id = $1 ORDER BY endpoint_id FOR NO KEY UPDATE"
SELECT_TIMES = "SELECT time FROM event WHERE tenant_id = $1 AND event_id = $2"
# A row has its event's time, so the search stays in the days that the event is in.
IS_PENDING = """
SELECT EXISTS (
    SELECT FROM outbox o
    WHERE o.tenant_id = $1 AND o.time = ANY ($3::timestamptz[]) AND o.event_id = $2
      AND NOT EXISTS (SELECT FROM attempt a WHERE a.tenant_id = o.tenant_id AND a.endpoint_id = o.endpoint_id
                      AND a.seq = o.seq AND a.event_id = o.event_id AND a.outcome = 1)
      AND NOT EXISTS (SELECT FROM decision d WHERE d.tenant_id = o.tenant_id AND d.endpoint_id = o.endpoint_id
                      AND d.seq = o.seq)
) OR EXISTS (SELECT FROM parked p WHERE p.tenant_id = $1 AND p.event_id = $2)"""
EXPUNGE_EVENT = """
UPDATE event SET data = '', attributes = NULL, source = NULL, subject = NULL,
                 expunge_time = coalesce(expunge_time, clock_timestamp())
WHERE tenant_id = $1 AND event_id = $2 AND time = ANY ($3::timestamptz[])"""
# A receiver may have sent the payload back.
EXPUNGE_EXCERPTS = """
UPDATE attempt a SET response_excerpt = NULL
FROM (SELECT DISTINCT o.endpoint_id, o.seq FROM outbox o
      WHERE o.tenant_id = $1 AND o.time = ANY ($3::timestamptz[]) AND o.event_id = $2) o
WHERE a.tenant_id = $1 AND a.endpoint_id = o.endpoint_id AND a.seq = o.seq AND a.event_id = $2
  AND a.response_excerpt IS NOT NULL"""
HAS_LETTERS = "SELECT EXISTS (SELECT FROM dead_letter WHERE tenant_id = $1 AND event_id = $2)"
DISCARD_LETTERS = """
UPDATE dead_letter SET state = 'DISCARDED', close_time = clock_timestamp(), close_reason = $3, close_actor = $4,
                       own_data = NULL
WHERE tenant_id = $1 AND event_id = $2 AND state = 'OPEN'"""
FORGET_LETTERS_DATA = "UPDATE dead_letter SET own_data = NULL WHERE tenant_id = $1 AND event_id = $2"
DELETE_PAYLOAD = "DELETE FROM dead_letter_payload WHERE tenant_id = $1 AND event_id = $2"


async def expunge(db: Database, tenant: str, event_id: str, *, reason: str, actor: str) -> None:
    """Remove the payload, attributes, source and subject of an event, of all its copies, of its dead letters (open ones
    are discarded), and what receivers answered to it. Again for one that has none any more is no error.

    Errors: NotFoundError; PreconditionError `EVENT_PENDING` while a delivery of it is yet to be made.
    """
    name = f"tenants/{tenant}/events/{event_id}"
    async with change(db) as connection:
        owner = await tenants.lock(connection, tenant)
        await connection.execute(LOCK_ENDPOINTS, owner.tenant_id)
        times = [row["time"] for row in await connection.fetch(SELECT_TIMES, owner.tenant_id, event_id)]
        if not times and not await connection.fetchval(HAS_LETTERS, owner.tenant_id, event_id):
            raise NotFoundError("webhooks.dispatcher/Event", name)
        if await connection.fetchval(IS_PENDING, owner.tenant_id, event_id, times):
            raise PreconditionError(
                f"{name} has deliveries that are yet to be made; skip them first", reason="EVENT_PENDING", subject=name
            )
        await _remove(connection, owner.tenant_id, event_id, times)
        await connection.execute(DISCARD_LETTERS, owner.tenant_id, event_id, f"expunged: {reason}", actor)


async def _remove(connection: Connection, tenant_id: UUID, event_id: str, times: Sequence[datetime]) -> None:
    await connection.execute(EXPUNGE_EVENT, tenant_id, event_id, times)
    await connection.execute(EXPUNGE_EXCERPTS, tenant_id, event_id, times)
    await connection.execute(FORGET_LETTERS_DATA, tenant_id, event_id)
    await connection.execute(DELETE_PAYLOAD, tenant_id, event_id)
