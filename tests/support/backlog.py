"""Tenants, endpoints and rows written straight into the tables, so that a test may choose every time and sequence."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from dispatcher.model import Attempt, Decision, DecisionKind, EndpointKey, OutboxRow
from tests.support.deliveries import attempt_of

SETTINGS = {
    "url": "http://receiver.test/hook",
    "timeout_s": 5.0,
    "headers": {},
    "max_in_flight": 4,
    "ordering_mode": "ORDERED",
    "trace_propagation": "NONE",
}


def endpoint_id_in(partition: int) -> UUID:
    """A fresh endpoint id that falls into this lease partition."""
    return UUID(bytes=uuid.uuid4().bytes[:15] + bytes([partition]))


async def add_tenant(connection: asyncpg.Connection, name: str = "acme") -> UUID:
    tenant_id = uuid.uuid4()
    await connection.execute(
        "INSERT INTO tenant VALUES ($1, $2, $2, '{}', false, gen_random_uuid(), gen_random_uuid(), now(), now())",
        tenant_id,
        name,
    )
    return tenant_id


async def add_endpoint(
    connection: asyncpg.Connection,
    tenant_id: UUID,
    partition: int = 7,
    *,
    cursor_seq: int = 0,
    cursor_time: datetime | None = None,
    **changes: Any,
) -> EndpointKey:
    """An endpoint of revision 1 with its cursor, which is as old as the endpoint unless told otherwise."""
    key = EndpointKey(tenant_id, endpoint_id_in(partition))
    now = await connection.fetchval("SELECT clock_timestamp()")
    create_time = cursor_time or now
    await connection.execute(
        """
        INSERT INTO endpoint (tenant_id, endpoint_id, name, partition, description, labels, event_types, state,
                              state_reason, revision, settings, etag, create_time, update_time, delete_time)
        VALUES ($1, $2, $3, $4, '', '{}', '{*}', $5, '', 1, $6, gen_random_uuid(), $7, $8, $9)""",
        tenant_id,
        key.endpoint_id,
        f"e-{key.endpoint_id.hex[:12]}",
        partition,
        changes.get("state", "ACTIVE"),
        SETTINGS,
        create_time,
        now,
        changes.get("delete_time"),
    )
    await connection.execute(
        "INSERT INTO endpoint_revision VALUES ($1, $2, 1, $3, now())", tenant_id, key.endpoint_id, SETTINGS
    )
    await connection.execute(
        "INSERT INTO cursor VALUES ($1, $2, $3, $4)", tenant_id, key.endpoint_id, cursor_seq, create_time
    )
    return key


async def add_rows(
    connection: asyncpg.Connection,
    key: EndpointKey,
    count: int,
    *,
    first_seq: int = 1,
    time: datetime | None = None,
    step: timedelta = timedelta(0),
    revision: int = 1,
    data: bytes = b"{}",
) -> list[OutboxRow]:
    """`count` rows with an event each, ids `event-<seq>-<endpoint>`, the first at `time`, `step` apart."""
    start = time or await connection.fetchval("SELECT clock_timestamp()")
    rows = [
        OutboxRow(
            key=key,
            seq=seq,
            time=start + n * step,
            event_id=f"event-{seq}-{key.endpoint_id.hex[:8]}",
            event_time=start + n * step,
            type="order.paid",
            ordering_key=None,
            revision=revision,
            data_bytes=len(data),
        )
        for n, seq in enumerate(range(first_seq, first_seq + count))
    ]
    await connection.executemany(
        "INSERT INTO event (tenant_id, event_id, time, type, content_type, data) VALUES ($1, $2, $3, $4, $5, $6)",
        [(key.tenant_id, r.event_id, r.event_time, r.type, "application/json", data) for r in rows],
    )
    await connection.executemany(
        """
        INSERT INTO outbox (tenant_id, endpoint_id, seq, time, event_id, event_time, type, revision, data_bytes)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)""",
        [
            (key.tenant_id, key.endpoint_id, r.seq, r.time, r.event_id, r.event_time, r.type, r.revision, r.data_bytes)
            for r in rows
        ],
    )
    return rows


def attempt_at(row: OutboxRow, **changes: Any) -> Attempt:
    """A success a moment after the row was published, unless told otherwise."""
    start_time = row.time + timedelta(milliseconds=5)
    fields = {"key": row.key, "seq": row.seq, "event_id": row.event_id, "start_time": start_time}
    return attempt_of(**(fields | changes))


def decision_on(row: OutboxRow, kind: DecisionKind = DecisionKind.DEAD_LETTER) -> Decision:
    return Decision(row.key, row.seq, row.event_id, row.event_time, kind, "ATTEMPTS_EXHAUSTED", "dispatcher")
