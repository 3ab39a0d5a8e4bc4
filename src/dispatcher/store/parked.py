"""Parked deliveries on record: out of the straight line, so that the cursor may pass over them.

Only the owner writes them (fenced). That one is settled is a fact like any other; its record is deleted some time
later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from dispatcher.model import EndpointKey, OrderingMode, OutboxRow
from dispatcher.store import forms
from dispatcher.store.backlog import fill_facts_of_each
from dispatcher.store.database import Connection, Database
from dispatcher.store.fence import continuing, fenced, probing
from dispatcher.store.forms import by_tenant

LOAD_ROWS_MAX = 100_000
"""Parked deliveries of one UNORDERED endpoint that are read at a takeover; lanes park far fewer."""


@dataclass(frozen=True, slots=True)
class ParkRequest:
    """A delivery to park; its next attempt may start in `delay_s`."""

    row: OutboxRow
    mode: OrderingMode
    delay_s: float


INSERT_PARKED = by_tenant(
    """
INSERT INTO parked (tenant_id, endpoint_id, seq, time, event_id, event_time, type, ordering_key, ordering_mode,
                    revision, data_bytes, replay_of, attempts, first_attempt_time, due_time)
SELECT p.tenant_id, p.endpoint_id, p.seq, p.time, p.event_id, p.event_time, p.type, p.ordering_key, p.ordering_mode,
       p.revision, p.data_bytes, p.replay_of, p.attempts, p.first_attempt_time,
       clock_timestamp() + make_interval(secs => p.delay_s)
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::timestamptz[], $5::text[], $6::timestamptz[], $7::text[],
            $8::text[], $9::text[], $10::integer[], $11::integer[], $12::bigint[], $13::integer[], $14::timestamptz[],
            $15::double precision[])
     p(tenant_id, endpoint_id, seq, time, event_id, event_time, type, ordering_key, ordering_mode, revision, data_bytes,
       replay_of, attempts, first_attempt_time, delay_s)
ORDER BY p.tenant_id, p.endpoint_id, p.seq
ON CONFLICT DO NOTHING"""
)


async def park(db: Database, epochs: Mapping[int, int], requests: Sequence[ParkRequest]) -> set[int]:
    """Record deliveries as parked, for the partitions still held at these epochs; returns those partitions.

    All of a partition or none: of one ordering key a later delivery never stands without the earlier ones. Raises
    UnavailableError; then nothing or everything is recorded, and recording again changes nothing.
    """
    async with fenced(db, epochs) as (connection, held):
        kept = [_record(request) for request in requests if request.row.key.partition in held]
        if kept:
            await forms.execute(connection, INSERT_PARKED, kept)
    return held


@dataclass(frozen=True, slots=True)
class StoredParked:
    """A parked delivery with what is on record about it; its next attempt may start in `delay_s`.

    `more`: there are further ones of its ordering key behind it.
    """

    row: OutboxRow
    mode: OrderingMode
    delay_s: float
    more: bool = False


# The highest is of the running mode; rows of another mode are admitted only once all before them are done, so records
# of another mode are left over.
DELETE_LEFT_OVER = """
WITH newest AS (
    SELECT p.ordering_mode FROM parked p WHERE p.tenant_id = $1 AND p.endpoint_id = $2 ORDER BY p.seq DESC LIMIT 1
), gone AS (
    DELETE FROM parked p USING newest n
    WHERE p.tenant_id = $1 AND p.endpoint_id = $2 AND p.ordering_mode <> n.ordering_mode
)
SELECT n.ordering_mode FROM newest n"""
# A loose index scan: the first of each key, however many are behind it.
LOAD_HEADS = """
WITH RECURSIVE head AS (
    (SELECT p.* FROM parked p WHERE p.tenant_id = $1 AND p.endpoint_id = $2
     ORDER BY coalesce(p.ordering_key, ''), p.seq LIMIT 1)
    UNION ALL
    SELECT n.* FROM head h CROSS JOIN LATERAL (
        SELECT p.* FROM parked p
        WHERE p.tenant_id = $1 AND p.endpoint_id = $2
          AND coalesce(p.ordering_key, '') > coalesce(h.ordering_key, '')
        ORDER BY coalesce(p.ordering_key, ''), p.seq LIMIT 1
    ) n
)
SELECT h.seq, h.time, h.event_id, h.event_time, h.type, h.ordering_key, h.ordering_mode, h.revision, h.data_bytes,
       h.replay_of, h.attempts, h.first_attempt_time, h.due_time - clock_timestamp() AS delay,
       EXISTS (SELECT FROM parked p WHERE p.tenant_id = $1 AND p.endpoint_id = $2
                 AND coalesce(p.ordering_key, '') = coalesce(h.ordering_key, '') AND p.seq > h.seq) AS more
FROM head h ORDER BY h.seq"""
LOAD_ALL = """
SELECT p.seq, p.time, p.event_id, p.event_time, p.type, p.ordering_key, p.ordering_mode, p.revision, p.data_bytes,
       p.replay_of, p.attempts, p.first_attempt_time, p.due_time - clock_timestamp() AS delay, false AS more
FROM parked p WHERE p.tenant_id = $1 AND p.endpoint_id = $2 ORDER BY p.seq LIMIT $3"""


async def load(connection: Connection, key: EndpointKey) -> list[StoredParked]:
    """What a lane begins with: of an endpoint ordered by key the first parked delivery of each key, else all."""
    mode = await connection.fetchval(DELETE_LEFT_OVER, key.tenant_id, key.endpoint_id)
    if mode is None:
        return []
    if OrderingMode(mode) is OrderingMode.ORDERED_BY_KEY:
        rows = await connection.fetch(LOAD_HEADS, key.tenant_id, key.endpoint_id)
    else:
        rows = await connection.fetch(LOAD_ALL, key.tenant_id, key.endpoint_id, LOAD_ROWS_MAX)
    return await _with_facts(connection, key, rows)


LOAD_COLD = """
SELECT p.seq, p.time, p.event_id, p.event_time, p.type, p.ordering_key, p.ordering_mode, p.revision, p.data_bytes,
       p.replay_of, p.attempts, p.first_attempt_time, p.due_time - clock_timestamp() AS delay, false AS more
FROM parked p
WHERE p.tenant_id = $1 AND p.endpoint_id = $2 AND coalesce(p.ordering_key, '') = $3 AND p.seq > $4
ORDER BY p.seq LIMIT $5"""


async def load_cold(
    db: Database, key: EndpointKey, ordering_key: str | None, after_seq: int, limit: int
) -> tuple[list[StoredParked], bool]:
    """The next parked deliveries of an ordering key, and whether there are more behind them."""
    async with probing(db) as connection:
        rows = await connection.fetch(
            LOAD_COLD, key.tenant_id, key.endpoint_id, ordering_key or "", after_seq, limit + 1
        )
        return await _with_facts(connection, key, rows[:limit]), len(rows) > limit


async def _with_facts(
    connection: Connection, key: EndpointKey, records: Sequence[asyncpg.Record]
) -> list[StoredParked]:
    found = [
        StoredParked(
            _row(key, record),
            OrderingMode(record["ordering_mode"]),
            max(0.0, record["delay"].total_seconds()),
            record["more"],
        )
        for record in records
    ]
    await fill_facts_of_each(connection, [parked.row for parked in found])
    return found


RESCHEDULE = by_tenant(
    """
UPDATE parked p SET due_time = clock_timestamp() + make_interval(secs => r.delay_s)
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::double precision[]) r(tenant_id, endpoint_id, seq, delay_s)
WHERE p.tenant_id = r.tenant_id AND p.endpoint_id = r.endpoint_id AND p.seq = r.seq"""
)
DELETE_PARKED = by_tenant(
    """
DELETE FROM parked p USING unnest($1::uuid[], $2::uuid[], $3::bigint[]) d(tenant_id, endpoint_id, seq)
WHERE p.tenant_id = d.tenant_id AND p.endpoint_id = d.endpoint_id AND p.seq = d.seq"""
)
# A halt whose delivery has succeeded holds nothing; one whose delivery was decided upon is a command's to end.
DELETE_HALTS = by_tenant(
    """
DELETE FROM halt h USING unnest($1::uuid[], $2::uuid[], $3::bigint[]) d(tenant_id, endpoint_id, seq)
WHERE h.tenant_id = d.tenant_id AND h.endpoint_id = d.endpoint_id AND h.seq = d.seq
  AND NOT EXISTS (SELECT FROM decision x WHERE x.tenant_id = h.tenant_id AND x.endpoint_id = h.endpoint_id
                    AND x.seq = h.seq AND x.event_id = h.event_id AND x.kind = 3)"""
)


async def tidy(
    db: Database,
    finished: Sequence[tuple[EndpointKey, int]],
    delays_s: Sequence[tuple[EndpointKey, int, float]],
) -> None:
    """Delete the records of deliveries that are done, and note when others are tried next. Raises UnavailableError.

    No fence: that a delivery is done is a committed fact; and when it is tried next decides nothing. Save on another
    timeline, where the fact may be lost: then its record is all that tells the next owner of the delivery.
    """
    async with continuing(db) as connection:
        if delays_s:
            rows = [(key.tenant_id, key.endpoint_id, seq, delay_s) for key, seq, delay_s in delays_s]
            await forms.execute(connection, RESCHEDULE, rows)
        if finished:
            seqs = [(key.tenant_id, key.endpoint_id, seq) for key, seq in finished]
            await forms.execute(connection, DELETE_PARKED, seqs)
            await forms.execute(connection, DELETE_HALTS, seqs)


LOAD_OLDER = """
SELECT p.seq, p.time, p.event_id, p.event_time, p.type, p.ordering_key, p.ordering_mode, p.revision, p.data_bytes,
       p.replay_of, p.attempts, p.first_attempt_time
FROM parked p WHERE p.tenant_id = $1 AND p.endpoint_id = $2 AND p.time < $3 ORDER BY p.seq LIMIT $4"""


async def load_older(db: Database, key: EndpointKey, before: datetime, limit: int) -> list[OutboxRow]:
    """Parked deliveries of an endpoint older than `before`, with what is on record about each."""
    async with probing(db) as connection:
        records = await connection.fetch(LOAD_OLDER, key.tenant_id, key.endpoint_id, before, limit)
        rows = [_row(key, record) for record in records]
        await fill_facts_of_each(connection, rows)
    return rows


ENDPOINTS_BEFORE = """
SELECT p.tenant_id, p.endpoint_id FROM parked p WHERE p.time < $1 GROUP BY p.tenant_id, p.endpoint_id LIMIT $2"""


async def endpoints_before(connection: Connection, time: datetime, limit: int) -> list[EndpointKey]:
    """Endpoints with parked deliveries older than that."""
    rows = await connection.fetch(ENDPOINTS_BEFORE, time, limit)
    return [EndpointKey(row["tenant_id"], row["endpoint_id"]) for row in rows]


def _record(request: ParkRequest) -> tuple[object, ...]:
    row = request.row
    return (
        row.key.tenant_id,
        row.key.endpoint_id,
        row.seq,
        row.time,
        row.event_id,
        row.event_time,
        row.type,
        row.ordering_key,
        request.mode.value,
        row.revision,
        row.data_bytes,
        row.replay_of,
        row.attempts,
        row.first_attempt_time,
        request.delay_s,
    )


def _row(key: EndpointKey, record: asyncpg.Record) -> OutboxRow:
    return OutboxRow(
        key=key,
        seq=record["seq"],
        time=record["time"],
        event_id=record["event_id"],
        event_time=record["event_time"],
        type=record["type"],
        ordering_key=record["ordering_key"],
        revision=record["revision"],
        data_bytes=record["data_bytes"],
        attempts=record["attempts"],
        first_attempt_time=record["first_attempt_time"],
        replay_of=record["replay_of"],
    )
