"""Halts on record: deliveries at which nothing goes on until an operator has decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from dispatcher.model import DecisionKind, DeliveryState, EndpointKey, Halt, OrderingMode, OutboxRow
from dispatcher.store import forms
from dispatcher.store.database import Connection, Database
from dispatcher.store.deliveries import Delivery, RecordedDecision
from dispatcher.store.forms import by_tenant
from dispatcher.store.operational import OperationalEvent, OperationalType, facts_of, record

INSERT_HALTS = by_tenant(
    """
INSERT INTO halt (tenant_id, endpoint_id, seq, event_id, event_time, type, ordering_key, ordering_mode, reason, time)
SELECT h.tenant_id, h.endpoint_id, h.seq, h.event_id, h.event_time, h.type, h.ordering_key, h.ordering_mode, h.reason,
       clock_timestamp()
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::text[],
            $9::text[])
     h(tenant_id, endpoint_id, seq, event_id, event_time, type, ordering_key, ordering_mode, reason)
ORDER BY h.tenant_id, h.endpoint_id, h.seq
ON CONFLICT DO NOTHING
RETURNING tenant_id, endpoint_id, seq"""
)
# What subscribers are told, so that the first success afterwards takes it back.
MARK_TROUBLE = by_tenant(
    """
INSERT INTO endpoint_health (tenant_id, endpoint_id, epoch, exhausted_heads, circuits, trouble, update_time)
SELECT DISTINCT h.tenant_id, h.endpoint_id, 0, 0, '[]'::jsonb, 'HALTED', clock_timestamp()
FROM unnest($1::uuid[], $2::uuid[]) h(tenant_id, endpoint_id)
ON CONFLICT (tenant_id, endpoint_id) DO UPDATE SET trouble = 'HALTED'"""
)


async def insert(connection: Connection, halts: Sequence[Halt]) -> None:
    """Put halts on record, inside a fenced transaction; those there already are left, and announced once."""
    rows = await forms.fetch(connection, INSERT_HALTS, [_record(halt) for halt in halts])
    new = {(row["tenant_id"], row["endpoint_id"], row["seq"]) for row in rows}
    announced = [halt for halt in halts if (halt.key.tenant_id, halt.key.endpoint_id, halt.seq) in new]
    if announced:
        keys = [(halt.key.tenant_id, halt.key.endpoint_id) for halt in announced]
        await forms.execute(connection, MARK_TROUBLE, keys)
        await record(connection, [_event(halt) for halt in announced])


def _record(halt: Halt) -> tuple[object, ...]:
    return (
        halt.key.tenant_id,
        halt.key.endpoint_id,
        halt.seq,
        halt.event_id,
        halt.event_time,
        halt.type,
        halt.ordering_key,
        halt.ordering_mode.value,
        halt.reason,
    )


def _event(halt: Halt) -> OperationalEvent:
    facts = facts_of(halt, halt.reason)
    return OperationalEvent(halt.key, OperationalType.ENDPOINT_HALTED, facts, cause_type=halt.type)


@dataclass(frozen=True, slots=True)
class StoredHalt:
    """A halt as its endpoint's next owner finds it; `row.settled`: its delivery has ended otherwise (expired)."""

    row: OutboxRow
    mode: OrderingMode


# A success, however late, leaves no gap: it ends the halt.
LOAD_HALTS = """
SELECT h.tenant_id, h.endpoint_id, h.seq, h.event_id, h.event_time, h.type, h.ordering_key, h.ordering_mode, h.time,
       d.seq IS NOT NULL AS settled
FROM halt h
LEFT JOIN decision d ON d.tenant_id = h.tenant_id AND d.endpoint_id = h.endpoint_id AND d.seq = h.seq
                    AND d.event_id = h.event_id
WHERE h.tenant_id = $1 AND h.endpoint_id = $2 AND NOT EXISTS (
    SELECT FROM attempt a
    WHERE a.tenant_id = h.tenant_id AND a.endpoint_id = h.endpoint_id AND a.seq = h.seq AND a.event_id = h.event_id
      AND a.outcome = 1 AND a.time >= h.event_time - interval '1 hour')
ORDER BY h.seq"""


async def load(connection: Connection, key: EndpointKey) -> list[StoredHalt]:
    """The halts of an endpoint that still hold something."""
    rows = await connection.fetch(LOAD_HALTS, key.tenant_id, key.endpoint_id)
    return [StoredHalt(_row(key, row), OrderingMode(row["ordering_mode"])) for row in rows]


# A halt outlives the retention of its row; then it is all there is of its delivery, beside the decision.
SELECT_HALTED = """
SELECT h.event_id, h.type, h.ordering_key, h.event_time, e.name AS endpoint_name, d.kind, d.reason, d.actor, d.time
FROM halt h
JOIN endpoint e ON e.tenant_id = h.tenant_id AND e.endpoint_id = h.endpoint_id
LEFT JOIN decision d ON d.tenant_id = h.tenant_id AND d.endpoint_id = h.endpoint_id AND d.seq = h.seq
                    AND d.event_id = h.event_id
WHERE h.tenant_id = $1 AND h.endpoint_id = $2 AND h.seq = $3"""


async def find_delivery(db: Database, key: EndpointKey, seq: int) -> Delivery | None:
    """The delivery that a halt is at, as far as the halt tells; None where there is no halt."""
    row = await db.fetchrow(SELECT_HALTED, key.tenant_id, key.endpoint_id, seq)
    if row is None:
        return None
    decision = None
    if row["kind"] is not None:
        decision = RecordedDecision(DecisionKind(row["kind"]), row["reason"], row["actor"], row["time"])
    return Delivery(
        key=key,
        endpoint_name=row["endpoint_name"],
        seq=seq,
        event_id=row["event_id"],
        type=row["type"],
        ordering_key=row["ordering_key"],
        state=DeliveryState.PENDING if decision is None else DeliveryState.DEAD_LETTERED,
        revision=0,
        attempt_count=0,
        last_attempt=None,
        create_time=row["event_time"],
        deliver_time=None,
        decision=decision,
    )


DELETE_HALTS = "DELETE FROM halt WHERE tenant_id = $1 AND endpoint_id = $2 AND seq = ANY ($3::bigint[]) RETURNING seq"


async def delete(connection: Connection, key: EndpointKey, seqs: Sequence[int]) -> int:
    """Take halts off the record; returns how many there were."""
    return len(await connection.fetch(DELETE_HALTS, key.tenant_id, key.endpoint_id, list(seqs)))


def _row(key: EndpointKey, row: asyncpg.Record) -> OutboxRow:
    return OutboxRow(
        key=key,
        seq=row["seq"],
        time=row["event_time"],
        event_id=row["event_id"],
        event_time=row["event_time"],
        type=row["type"],
        ordering_key=row["ordering_key"],
        revision=0,
        data_bytes=0,
        settled=row["settled"],
    )
