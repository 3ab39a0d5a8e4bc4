"""Decisions end a delivery without success; only the owner of the partition may write them, see `store.fence`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from dispatcher.model import DeadLetter, Decision, DecisionKind, EndpointKey, Halt
from dispatcher.store import forms, halts
from dispatcher.store.attempts import storable_text
from dispatcher.store.database import Connection, Database
from dispatcher.store.fence import fenced, guard_plan
from dispatcher.store.forms import by_tenant
from dispatcher.store.operational import OperationalEvent, OperationalType, facts_of, record

INSERT_DECISIONS = by_tenant(
    """
INSERT INTO decision (tenant_id, endpoint_id, seq, kind, event_id, reason, actor, time)
SELECT d.tenant_id, d.endpoint_id, d.seq, d.kind, d.event_id, d.reason, d.actor, clock_timestamp()
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::smallint[], $5::text[], $6::text[], $7::text[])
     d(tenant_id, endpoint_id, seq, kind, event_id, reason, actor)
ORDER BY d.tenant_id, d.endpoint_id, d.seq
ON CONFLICT DO NOTHING"""
)


async def commit(
    db: Database,
    epochs: Mapping[int, int],
    decisions: Sequence[Decision],
    dead_letters: Sequence[DeadLetter],
    halted: Sequence[Halt] = (),
) -> set[int]:
    """Write decisions with their dead letters, and halts, for the partitions still held at these epochs; returns those.

    Only what is of the partitions returned are committed, durably; writing one again changes nothing. When this
    raises, nothing or everything may be committed: ask again.
    """
    async with fenced(db, epochs) as (connection, held):
        kept = [d for d in decisions if d.key.partition in held]
        if kept:
            await forms.execute(connection, INSERT_DECISIONS, [_decision_record(d) for d in kept])
        letters = [d for d in dead_letters if d.key.partition in held]
        if letters:
            await _insert_dead_letters(connection, letters, decisions)
        if kept_halts := [h for h in halted if h.key.partition in held]:
            await halts.insert(connection, kept_halts)
    return held


INSERT_DEAD_LETTERS = by_tenant(
    """
INSERT INTO dead_letter (tenant_id, endpoint_id, seq, event_id, time, type, ordering_key, content_type, attempts,
                         last_outcome, last_status_code, last_error)
SELECT d.tenant_id, d.endpoint_id, d.seq, d.event_id, clock_timestamp(), d.type, d.ordering_key,
       coalesce(e.content_type, 'application/octet-stream'), d.attempts, d.last_outcome, d.last_status_code,
       d.last_error
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::integer[],
            $9::smallint[], $10::smallint[], $11::text[])
     d(tenant_id, endpoint_id, seq, event_id, event_time, type, ordering_key, attempts, last_outcome, last_status_code,
       last_error)
LEFT JOIN LATERAL (
    SELECT e.content_type FROM event e
    WHERE e.tenant_id = d.tenant_id AND e.event_id = d.event_id AND e.time = d.event_time LIMIT 1
) e ON true
ORDER BY d.tenant_id, d.endpoint_id, d.seq
ON CONFLICT DO NOTHING
RETURNING tenant_id, endpoint_id, seq"""
)
# One copy per event however many endpoints gave up on it, in key order: another owner may be writing the same. The
# conflict is locked, not passed over: whoever is deleting that payload just now is waited for.
INSERT_PAYLOADS = by_tenant(
    """
INSERT INTO dead_letter_payload (tenant_id, event_id, data)
SELECT d.tenant_id, d.event_id, e.data
FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) d(tenant_id, event_id, event_time)
CROSS JOIN LATERAL (
    SELECT e.data FROM event e
    WHERE e.tenant_id = d.tenant_id AND e.event_id = d.event_id AND e.time = d.event_time LIMIT 1
) e
ORDER BY d.tenant_id, d.event_id
ON CONFLICT (tenant_id, event_id) DO UPDATE SET event_id = excluded.event_id"""
)
# An id that is used again once the deduplication has forgotten it may name another payload.
KEEP_OWN = by_tenant(
    """
UPDATE dead_letter l SET own_data = e.data
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::timestamptz[])
     d(tenant_id, endpoint_id, seq, event_id, event_time)
JOIN dead_letter_payload p ON p.tenant_id = d.tenant_id AND p.event_id = d.event_id
CROSS JOIN LATERAL (
    SELECT e.data FROM event e
    WHERE e.tenant_id = d.tenant_id AND e.event_id = d.event_id AND e.time = d.event_time LIMIT 1
) e
WHERE l.tenant_id = d.tenant_id AND l.endpoint_id = d.endpoint_id AND l.seq = d.seq AND p.data <> e.data"""
)


async def _insert_dead_letters(
    connection: Connection, letters: Sequence[DeadLetter], decisions: Sequence[Decision]
) -> None:
    """Each is announced once, by whoever put it on record."""
    await guard_plan(connection)
    rows = await forms.fetch(connection, INSERT_DEAD_LETTERS, [_letter_record(d) for d in letters])
    new = {(row["tenant_id"], row["endpoint_id"], row["seq"]) for row in rows}
    reasons = {(d.key, d.seq): d.reason for d in decisions}
    await record(
        connection,
        [
            _announcement(letter, reasons.get((letter.key, letter.seq), ""))
            for letter in letters
            if (letter.key.tenant_id, letter.key.endpoint_id, letter.seq) in new
        ],
    )
    # Of two publications of one id the older keeps its place; one statement must not meet the same key twice.
    events = {(d.key.tenant_id, d.event_id): d.event_time for d in reversed(letters)}
    await forms.execute(connection, INSERT_PAYLOADS, [(*names, time) for names, time in events.items()])
    named = [(d.key.tenant_id, d.key.endpoint_id, d.seq, d.event_id, d.event_time) for d in letters]
    await forms.execute(connection, KEEP_OWN, named)


def _announcement(letter: DeadLetter, reason: str) -> OperationalEvent:
    facts = facts_of(letter, reason)
    return OperationalEvent(letter.key, OperationalType.DELIVERY_DEAD_LETTERED, facts, cause_type=letter.type)


@dataclass(frozen=True, slots=True)
class SkipProgress:
    """How far one call of `skip_range` got: nothing of the range is pending up to and including `through_seq`.

    `held` False: the lease is gone and nothing was written. `skipped` counts the decisions written now.
    """

    held: bool
    through_seq: int
    skipped: int


# Rows at or below the cursor are settled already, and their partitions may be gone.
SKIP_RANGE = """
WITH bound AS MATERIALIZED (
    SELECT c.seq, c.time FROM cursor c WHERE c.tenant_id = $1 AND c.endpoint_id = $2
), rows AS MATERIALIZED (
    SELECT o.seq, o.event_id, o.time FROM outbox o
    WHERE o.tenant_id = $1 AND o.endpoint_id = $2
      AND o.seq >= greatest($3, (SELECT b.seq FROM bound b) + 1) AND o.seq <= $4
      AND o.time >= (SELECT b.time FROM bound b)
    ORDER BY o.seq LIMIT $5
), skipped AS (
    INSERT INTO decision (tenant_id, endpoint_id, seq, kind, event_id, reason, actor, time)
    SELECT $1, $2, r.seq, $6, r.event_id, $7, $8, clock_timestamp()
    FROM rows r
    LEFT JOIN LATERAL (
        SELECT true AS succeeded FROM attempt a
        WHERE a.tenant_id = $1 AND a.endpoint_id = $2 AND a.seq = r.seq AND a.event_id = r.event_id AND a.outcome = 1
          AND a.time >= r.time - interval '1 hour' AND a.time < now() + interval '1 day'
        LIMIT 1
    ) s ON true
    WHERE s.succeeded IS NULL
    ON CONFLICT DO NOTHING
    RETURNING 1
)
SELECT (SELECT count(*) FROM rows) AS seen, (SELECT max(r.seq) FROM rows r) AS through,
       (SELECT count(*) FROM skipped) AS skipped"""


async def skip_range(
    db: Database, epoch: int, key: EndpointKey, from_seq: int, to_seq: int, limit: int, reason: str, actor: str
) -> SkipProgress:
    """Skip up to `limit` rows of `from_seq` … `to_seq` that no success is on record for, under the endpoint's lease.

    Call again from `through_seq + 1` until `through_seq` is `to_seq`. Raises `UnavailableError`.
    """
    async with fenced(db, {key.partition: epoch}) as (connection, held):
        if not held:
            return SkipProgress(held=False, through_seq=from_seq - 1, skipped=0)
        await guard_plan(connection)
        row: asyncpg.Record | None = await connection.fetchrow(
            SKIP_RANGE, key.tenant_id, key.endpoint_id, from_seq, to_seq, limit, DecisionKind.SKIP, reason, actor
        )
    if row is None or row["seen"] < limit:
        return SkipProgress(held=True, through_seq=to_seq, skipped=row["skipped"] if row else 0)
    return SkipProgress(held=True, through_seq=row["through"], skipped=row["skipped"])


SKIP_PARKED = """
WITH rows AS MATERIALIZED (
    DELETE FROM parked p
    WHERE p.tenant_id = $1 AND p.endpoint_id = $2 AND p.seq IN (
        SELECT q.seq FROM parked q WHERE q.tenant_id = $1 AND q.endpoint_id = $2 ORDER BY q.seq LIMIT $3)
    RETURNING p.seq, p.event_id, p.time
), skipped AS (
    INSERT INTO decision (tenant_id, endpoint_id, seq, kind, event_id, reason, actor, time)
    SELECT $1, $2, r.seq, $4, r.event_id, $5, $6, clock_timestamp()
    FROM rows r
    WHERE NOT EXISTS (
        SELECT FROM attempt a
        WHERE a.tenant_id = $1 AND a.endpoint_id = $2 AND a.seq = r.seq AND a.event_id = r.event_id AND a.outcome = 1
          AND a.time >= r.time - interval '1 hour' AND a.time < now() + interval '1 day')
    ON CONFLICT DO NOTHING
    RETURNING 1
)
SELECT (SELECT count(*) FROM rows) AS seen, (SELECT count(*) FROM skipped) AS skipped"""
DELETE_ALL_HALTS = "DELETE FROM halt WHERE tenant_id = $1 AND endpoint_id = $2"
DELETE_HEALTH = "DELETE FROM endpoint_health WHERE tenant_id = $1 AND endpoint_id = $2"


async def skip_parked(db: Database, epoch: int, key: EndpointKey, limit: int, reason: str, actor: str) -> SkipProgress:
    """Skip up to `limit` parked deliveries of a deleted endpoint, end its halts and forget its health; `through_seq`
    counts those seen.

    Call again until it has seen fewer than `limit`. Raises `UnavailableError`.
    """
    async with fenced(db, {key.partition: epoch}) as (connection, held):
        if not held:
            return SkipProgress(held=False, through_seq=0, skipped=0)
        await guard_plan(connection)
        row = await connection.fetchrow(
            SKIP_PARKED, key.tenant_id, key.endpoint_id, limit, DecisionKind.SKIP, reason, actor
        )
        await connection.execute(DELETE_ALL_HALTS, key.tenant_id, key.endpoint_id)
        await connection.execute(DELETE_HEALTH, key.tenant_id, key.endpoint_id)
    return SkipProgress(held=True, through_seq=row["seen"] if row else 0, skipped=row["skipped"] if row else 0)


def _decision_record(d: Decision) -> tuple[object, ...]:
    return d.key.tenant_id, d.key.endpoint_id, d.seq, int(d.kind), d.event_id, d.reason, d.actor


def _letter_record(d: DeadLetter) -> tuple[object, ...]:
    return (
        d.key.tenant_id,
        d.key.endpoint_id,
        d.seq,
        d.event_id,
        d.event_time,
        d.type,
        d.ordering_key,
        d.attempts,
        None if d.last_outcome is None else int(d.last_outcome),
        d.last_status_code,
        storable_text(d.last_error),
    )
