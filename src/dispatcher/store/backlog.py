"""What delivery reads: positions, outbox rows with what is on record about them, payloads, and the sweep.

Every read is by index probes whose partitions are pruned by time: rows above a cursor are not older than the cursor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from uuid import UUID

import asyncpg

from dispatcher.model import EndpointKey, OutboxRow, Payload
from dispatcher.store import forms
from dispatcher.store.database import Connection, Database, is_one_tenant
from dispatcher.store.fence import probing
from dispatcher.store.forms import by_tenant

PayloadKey = tuple[UUID, str, datetime]
"""Tenant, event id, event time: where a payload lies."""


@dataclass(frozen=True, slots=True)
class EndpointPosition:
    """Where an endpoint stands: settled or parked through `cursor_seq`, rows up to `highest_seq`.

    `has_held`: there are parked deliveries or halts on record. Without, and where the two are equal, nothing is to do.
    """

    key: EndpointKey
    cursor_seq: int
    cursor_time: datetime
    highest_seq: int
    has_held: bool = False


# Of a cursor `c`: the highest row above it, and what is held.
STANDING = """LEFT JOIN LATERAL (
    SELECT o.seq FROM outbox o
    WHERE o.tenant_id = c.tenant_id AND o.endpoint_id = c.endpoint_id AND o.seq > c.seq AND o.time >= c.time
    ORDER BY o.seq DESC LIMIT 1
) h ON true
CROSS JOIN LATERAL (
    SELECT EXISTS (SELECT FROM parked p WHERE p.tenant_id = c.tenant_id AND p.endpoint_id = c.endpoint_id)
        OR EXISTS (SELECT FROM halt t WHERE t.tenant_id = c.tenant_id AND t.endpoint_id = c.endpoint_id) AS has_held
) x"""
LOAD_PARTITION = """
SELECT c.tenant_id, c.endpoint_id, c.seq, c.time, greatest(c.seq, h.seq) AS highest, x.has_held
FROM endpoint e
JOIN cursor c ON c.tenant_id = e.tenant_id AND c.endpoint_id = e.endpoint_id
{standing}
WHERE e.partition = $1 AND (e.delete_time IS NULL OR h.seq IS NOT NULL OR x.has_held)""".replace("{standing}", STANDING)


async def load_partition(db: Database, partition: int) -> list[EndpointPosition]:
    """Probe every endpoint of a partition once, at takeover. Deleted ones appear only with rows above their cursor."""
    async with probing(db) as connection:
        if is_one_tenant(connection):
            return await _load_partition_by_tenant(connection, partition)
        rows = await connection.fetch(LOAD_PARTITION, partition)
    return [_position(row) for row in rows]


KEYS_OF_PARTITION = """
SELECT e.tenant_id, e.endpoint_id, e.delete_time IS NOT NULL AS is_deleted FROM endpoint e WHERE e.partition = $1"""


async def _load_partition_by_tenant(connection: Connection, partition: int) -> list[EndpointPosition]:
    """The same tenant by tenant: who is in it first, then where each stands."""
    found = await connection.fetch(KEYS_OF_PARTITION, partition)
    deleted = {row["endpoint_id"] for row in found if row["is_deleted"]}
    rows = await forms.fetch(connection, LOAD_POSITIONS, [(row["tenant_id"], row["endpoint_id"]) for row in found])
    positions = [_position(row) for row in rows]
    return [
        position
        for position in positions
        if position.key.endpoint_id not in deleted or position.has_held or position.highest_seq > position.cursor_seq
    ]


LOAD_POSITIONS = by_tenant(
    """
SELECT c.tenant_id, c.endpoint_id, c.seq, c.time, greatest(c.seq, h.seq) AS highest, x.has_held
FROM unnest($1::uuid[], $2::uuid[]) k(tenant_id, endpoint_id)
JOIN cursor c ON c.tenant_id = k.tenant_id AND c.endpoint_id = k.endpoint_id
{standing}""".replace("{standing}", STANDING)
)


async def load_positions(db: Database, keys: Sequence[EndpointKey]) -> list[EndpointPosition]:
    """Positions of single endpoints, deleted or not; unknown ones are missing from the answer."""
    async with probing(db) as connection:
        rows = await forms.fetch(connection, LOAD_POSITIONS, _key_rows(keys))
    return [_position(row) for row in rows]


@dataclass(frozen=True, slots=True)
class RowsWanted:
    """Up to `limit` rows of an endpoint above `after_seq`, none of them older than `after_time`.

    `fresh`: nobody can have attempted them, so nothing on record about them needs to be looked up.
    """

    key: EndpointKey
    after_seq: int
    after_time: datetime
    limit: int
    fresh: bool = False


FETCH_ROWS = by_tenant(
    """
SELECT o.tenant_id, o.endpoint_id, o.seq, o.time, o.event_id, o.event_time, o.type, o.ordering_key, o.revision,
       o.data_bytes, o.replay_of
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::timestamptz[], $5::integer[])
     WITH ORDINALITY w(tenant_id, endpoint_id, after_seq, after_time, row_limit, i)
CROSS JOIN LATERAL (
    SELECT o.tenant_id, o.endpoint_id, o.seq, o.time, o.event_id, o.event_time, o.type, o.ordering_key, o.revision,
           o.data_bytes, o.replay_of
    FROM outbox o
    WHERE o.tenant_id = w.tenant_id AND o.endpoint_id = w.endpoint_id AND o.seq > w.after_seq
      AND o.time >= w.after_time
    ORDER BY o.seq LIMIT w.row_limit
) o
ORDER BY w.i, o.seq"""
)


async def fetch_rows(db: Database, wants: Sequence[RowsWanted]) -> list[OutboxRow]:
    """Rows of many endpoints, each named once, in the order of `wants` and by sequence, without payloads.

    Contiguity is for the caller to check: a row of a transaction that is still committing may be missing at the end.
    """
    if not wants:
        return []
    async with probing(db) as connection:
        return await fetch_rows_on(connection, wants)


async def fetch_rows_on(connection: Connection, wants: Sequence[RowsWanted]) -> list[OutboxRow]:
    """`fetch_rows` inside a transaction that has called `guard_plan`."""
    arguments = [(w.key.tenant_id, w.key.endpoint_id, w.after_seq, w.after_time, w.limit) for w in wants if w.limit > 0]
    rows = _rows(await forms.fetch(connection, FETCH_ROWS, arguments))
    place = {w.key.endpoint_id: i for i, w in enumerate(wants)}
    rows.sort(key=lambda row: place[row.key.endpoint_id])  # tenant by tenant they came in another order
    fresh = {w.key.endpoint_id for w in wants if w.fresh}
    await _fill_facts(connection, [row for row in rows if row.key.endpoint_id not in fresh])
    return rows


# By range of sequences, not by row: one probe per endpoint and partition. An attempt's time is its sender's clock:
# allow it to lag an hour behind the database or be a day ahead. What the egress proxy failed (11) bears the number of
# the attempt before it, so that the highest is how many were used up; neither age nor back-off begin with it.
FETCH_FACTS = by_tenant(
    """
SELECT w.endpoint_id, f.*
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::timestamptz[])
     w(tenant_id, endpoint_id, first_seq, last_seq, first_time)
CROSS JOIN LATERAL (
    SELECT a.seq, a.event_id, max(a.number) AS attempts,
           min(a.time) FILTER (WHERE a.outcome <> 11) AS first_time,
           max(a.time + a.duration_us * interval '1 microsecond') FILTER (WHERE a.outcome <> 11) AS last_time,
           bool_or(a.outcome = 1) AS settled, false AS parked
    FROM attempt a
    WHERE a.tenant_id = w.tenant_id AND a.endpoint_id = w.endpoint_id AND a.seq >= w.first_seq AND a.seq <= w.last_seq
      AND a.time >= w.first_time - interval '1 hour' AND a.time < now() + interval '1 day'
    GROUP BY a.seq, a.event_id
    UNION ALL
    SELECT d.seq, d.event_id, NULL, NULL, NULL, true, false
    FROM decision d
    WHERE d.tenant_id = w.tenant_id AND d.endpoint_id = w.endpoint_id AND d.seq >= w.first_seq AND d.seq <= w.last_seq
    UNION ALL
    SELECT p.seq, p.event_id, NULL, NULL, NULL, false, true
    FROM parked p
    WHERE p.tenant_id = w.tenant_id AND p.endpoint_id = w.endpoint_id AND p.seq >= w.first_seq AND p.seq <= w.last_seq
) f"""
)


async def _fill_facts(connection: Connection, rows: Sequence[OutboxRow]) -> None:
    """Note on each row what is on record about it. Only facts of its own event count: a failover may have lost others.

    Facts are read after the rows, so they may be newer, never older.
    """
    await _note_facts(connection, rows, [_range_of(list(group)) for _, group in groupby(rows, key=lambda row: row.key)])


async def fill_facts_of_each(connection: Connection, rows: Sequence[OutboxRow]) -> None:
    """Note on rows that lie far apart what is on record about each; inside a transaction that called `guard_plan`."""
    await _note_facts(connection, rows, [_range_of([row]) for row in rows])


async def _note_facts(
    connection: Connection, rows: Sequence[OutboxRow], ranges: Sequence[tuple[UUID, UUID, int, int, datetime]]
) -> None:
    by_place = {(row.key.endpoint_id, row.seq): row for row in rows}
    for fact in await forms.fetch(connection, FETCH_FACTS, ranges) if ranges else ():
        row = by_place.get((fact["endpoint_id"], fact["seq"]))
        if row is None or row.event_id != fact["event_id"]:
            continue
        row.settled = row.settled or fact["settled"]
        row.parked = row.parked or fact["parked"]
        if fact["attempts"] is not None:
            row.attempts, row.first_attempt_time = fact["attempts"], fact["first_time"]
            row.last_attempt_time = fact["last_time"]


def _range_of(rows: Sequence[OutboxRow]) -> tuple[UUID, UUID, int, int, datetime]:
    first, last = rows[0], rows[-1]
    return first.key.tenant_id, first.key.endpoint_id, first.seq, last.seq, first.time


FETCH_PAYLOADS = by_tenant(
    """
SELECT e.tenant_id, e.event_id, e.time, e.data, e.content_type, e.traceparent
FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) w(tenant_id, event_id, time)
CROSS JOIN LATERAL (
    SELECT e.tenant_id, e.event_id, e.time, e.data, e.content_type, e.traceparent FROM event e
    WHERE e.tenant_id = w.tenant_id AND e.event_id = w.event_id AND e.time = w.time
    LIMIT 1
) e"""
)


async def fetch_payloads(db: Database, wanted: Sequence[PayloadKey]) -> dict[PayloadKey, Payload]:
    """Payloads of events, each once however often it is named. The caller bounds the sum of `OutboxRow.data_bytes`."""
    if not wanted:
        return {}
    async with probing(db) as connection:
        rows = await forms.fetch(connection, FETCH_PAYLOADS, list(dict.fromkeys(wanted)))
    return {
        (tenant_id, event_id, time): Payload(data, content_type, traceparent)
        for tenant_id, event_id, time, data, content_type, traceparent in rows
    }


# The time is read by a statement of its own: what commits later than the sweep's snapshot is newer than it, or was in
# flight, which is what the caller's look-back is for.
SWEEP_START = """
SELECT clock_timestamp(), set_config('enable_seqscan', 'off', true),
       set_config('plan_cache_mode', 'force_generic_plan', true)"""
SWEEP = """
SELECT o.tenant_id, o.endpoint_id, max(o.seq) AS highest
FROM outbox o
WHERE o.time >= $1 AND get_byte(uuid_send(o.endpoint_id), 15) = ANY ($2::integer[])
GROUP BY o.tenant_id, o.endpoint_id"""


async def sweep(
    db: Database, since: datetime, partitions: Sequence[int]
) -> tuple[datetime, list[tuple[EndpointKey, int]]]:
    """Endpoints of these partitions with rows not older than `since`, each with the highest sequence among them.

    Also returns the database's time at the start; the next sweep goes on from there less a look-back that exceeds the
    longest publish transaction. Its cost is that of the rows since then, of all partitions.
    """
    async with db.transaction() as connection:
        start: datetime = await connection.fetchval(SWEEP_START)
        rows = await connection.fetch(SWEEP, since, list(partitions))
    return start, [(EndpointKey(row["tenant_id"], row["endpoint_id"]), row["highest"]) for row in rows]


@dataclass(frozen=True, slots=True)
class BacklogCount:
    """Rows above the cursor, which may hold settled ones of the lane's window. `oldest_time` is None without any."""

    key: EndpointKey
    cursor_seq: int
    highest_seq: int
    oldest_time: datetime | None

    @property
    def count(self) -> int:
        return self.highest_seq - self.cursor_seq


BACKLOG_COUNTS = by_tenant(
    """
SELECT c.tenant_id, c.endpoint_id, c.seq, greatest(c.seq, h.seq) AS highest, f.time AS oldest
FROM unnest($1::uuid[], $2::uuid[]) k(tenant_id, endpoint_id)
JOIN cursor c ON c.tenant_id = k.tenant_id AND c.endpoint_id = k.endpoint_id
LEFT JOIN LATERAL (
    SELECT o.seq FROM outbox o
    WHERE o.tenant_id = c.tenant_id AND o.endpoint_id = c.endpoint_id AND o.seq > c.seq AND o.time >= c.time
    ORDER BY o.seq DESC LIMIT 1
) h ON true
LEFT JOIN LATERAL (
    SELECT o.time FROM outbox o
    WHERE o.tenant_id = c.tenant_id AND o.endpoint_id = c.endpoint_id AND o.seq > c.seq AND o.time >= c.time
    ORDER BY o.seq LIMIT 1
) f ON true"""
)


async def backlog_counts(db: Database, keys: Sequence[EndpointKey]) -> list[BacklogCount]:
    """How far endpoints lag behind. Sequences are gapless, so this is a subtraction, not a count."""
    async with probing(db) as connection:
        rows = await forms.fetch(connection, BACKLOG_COUNTS, _key_rows(keys))
    return [
        BacklogCount(EndpointKey(row["tenant_id"], row["endpoint_id"]), row["seq"], row["highest"], row["oldest"])
        for row in rows
    ]


def _key_rows(keys: Sequence[EndpointKey]) -> list[tuple[UUID, UUID]]:
    return [(key.tenant_id, key.endpoint_id) for key in keys]


def _position(row: asyncpg.Record) -> EndpointPosition:
    key = EndpointKey(row["tenant_id"], row["endpoint_id"])
    return EndpointPosition(key, row["seq"], row["time"], row["highest"], row["has_held"])


def _rows(records: Sequence[asyncpg.Record]) -> list[OutboxRow]:
    """One key object per endpoint, shared by its rows; columns in the order of FETCH_ROWS."""
    keys: dict[UUID, EndpointKey] = {}
    rows = []
    for record in records:
        tenant_id, endpoint_id, seq, time, event_id, event_time, type_, ordering_key, revision, size, replay_of = record
        key = keys.get(endpoint_id)
        if key is None:
            key = keys[endpoint_id] = EndpointKey(tenant_id, endpoint_id)
        row = OutboxRow(key, seq, time, event_id, event_time, type_, ordering_key, revision, size)
        row.replay_of = replay_of
        rows.append(row)
    return rows
