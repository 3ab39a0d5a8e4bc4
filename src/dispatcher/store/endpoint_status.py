"""How far an endpoint has come and what it waits for, as the database knows it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from dispatcher.errors import NotFoundError
from dispatcher.model import Endpoint, EndpointKey
from dispatcher.store import endpoint_troubles, endpoints
from dispatcher.store.changes import endpoint_name
from dispatcher.store.database import Database
from dispatcher.store.deliveries import Delivery, find
from dispatcher.store.endpoint_troubles import EndpointTroubles

BACKLOG_ROWS_MAX = 100_000
"""Rows above the cursor that a status looks at; above that the backlog is only known to be at least as large."""


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """`settled_through` is the low watermark: every sequence up to it is settled. `backlog_count` counts PENDING rows,
    exactly unless `backlog_capped`, when there are more. `blocked_by` is the lowest PENDING row that has failed, and
    `blocked_due` when its next attempt is due, known where it is parked.
    `now` is the database's clock, to tell the age of the oldest by. Parked deliveries count: they are below the cursor.
    """

    endpoint: Endpoint
    last_sequence: int
    settled_through: int
    backlog_count: int
    backlog_capped: bool
    oldest_pending_time: datetime | None
    blocked_by: Delivery | None
    blocked_due: datetime | None
    now: datetime
    troubles: EndpointTroubles


SELECT_POSITION = """
SELECT c.seq, c.time, clock_timestamp() AS now, coalesce((
    SELECT o.seq FROM outbox o
    WHERE o.tenant_id = c.tenant_id AND o.endpoint_id = c.endpoint_id AND o.time >= c.time ORDER BY o.seq DESC LIMIT 1
), c.seq) AS last_sequence
FROM cursor c WHERE c.tenant_id = $1 AND c.endpoint_id = $2"""
# $3 and $4 are the cursor, $5 the rows to look at. Settled rows above a cursor are at most a lane's window.
SELECT_BACKLOG = """
WITH above AS MATERIALIZED (
    SELECT seq, time, event_id FROM outbox
    WHERE tenant_id = $1 AND endpoint_id = $2 AND seq > $3 AND time >= $4 ORDER BY seq LIMIT $5
), tried AS MATERIALIZED (
    SELECT seq, event_id, bool_or(outcome = 1) AS is_delivered FROM attempt
    WHERE tenant_id = $1 AND endpoint_id = $2 AND seq > $3 AND time >= $4::timestamptz - interval '1 hour'
    GROUP BY seq, event_id
), pending AS MATERIALIZED (
    SELECT a.seq, a.time, t.seq IS NOT NULL AS has_failed
    FROM above a LEFT JOIN tried t ON t.seq = a.seq AND t.event_id = a.event_id
    WHERE t.is_delivered IS NOT TRUE AND NOT EXISTS (
        SELECT FROM decision d WHERE d.tenant_id = $1 AND d.endpoint_id = $2 AND d.seq = a.seq
          AND d.event_id = a.event_id)
      AND NOT EXISTS (
        SELECT FROM parked p WHERE p.tenant_id = $1 AND p.endpoint_id = $2 AND p.seq = a.seq)
)
SELECT (SELECT count(*) FROM above) AS above_count, (SELECT max(seq) FROM above) AS above_end,
       count(*) AS pending_count, min(seq) AS lowest, min(time) AS lowest_time,
       min(seq) FILTER (WHERE has_failed) AS lowest_failed
FROM pending"""


async def read(db: Database, tenant: str, endpoint: str, *, backlog_rows_max: int = BACKLOG_ROWS_MAX) -> EndpointStatus:
    """The status of an endpoint, a deleted one's included. Errors: NotFoundError."""
    found = await endpoints.get(db, tenant, endpoint, deleted_too=True)
    key = found.key
    position = await db.fetchrow(SELECT_POSITION, key.tenant_id, key.endpoint_id)
    if position is None:
        raise NotFoundError("webhooks.dispatcher/EndpointStatus", f"{endpoint_name(tenant, endpoint)}/status")
    (backlog,) = await db.fetch(
        SELECT_BACKLOG, key.tenant_id, key.endpoint_id, position["seq"], position["time"], backlog_rows_max
    )
    troubles = await endpoint_troubles.read(db, key, backlog_rows_max)
    blocked_by, blocked_due = await _blocking(db, key, _least(backlog["lowest_failed"], troubles.lowest_parked_failed))
    lowest = _least(backlog["lowest"], troubles.lowest_parked)
    return EndpointStatus(
        endpoint=found,
        last_sequence=max(position["last_sequence"], backlog["above_end"] or 0),
        settled_through=lowest - 1 if lowest is not None else backlog["above_end"] or position["seq"],
        backlog_count=backlog["pending_count"] + troubles.parked_count,
        backlog_capped=backlog["above_count"] == backlog_rows_max,
        oldest_pending_time=_least(backlog["lowest_time"], troubles.oldest_parked_time),
        blocked_by=blocked_by,
        blocked_due=blocked_due,
        now=position["now"],
        troubles=troubles,
    )


T = TypeVar("T", int, datetime)


def _least(one: T | None, other: T | None) -> T | None:
    """The lesser of what is there."""
    return min((value for value in (one, other) if value is not None), default=None)


SELECT_DUE = "SELECT due_time FROM parked WHERE tenant_id = $1 AND endpoint_id = $2 AND seq = $3"


async def _blocking(db: Database, key: EndpointKey, seq: int | None) -> tuple[Delivery | None, datetime | None]:
    if seq is None:
        return None, None
    due: datetime | None = await db.fetchval(SELECT_DUE, key.tenant_id, key.endpoint_id, seq)
    return await find(db, key, seq), due
