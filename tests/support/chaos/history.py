"""What a database says in the end, and what receivers got, in the words of the checker."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import asyncpg

from tests.support.callers import SteadyPublisher
from tests.support.chaos.doubter import Doubter
from tests.support.checker import Receipt, Record, Row
from tests.support.receiver import Request

ROWS = """
SELECT e.name AS endpoint, o.seq, o.event_id, o.ordering_key, coalesce(r.settings->>'ordering_mode', 'ORDERED') AS mode,
       o.replay_of IS NOT NULL AS is_replay,
       EXISTS (SELECT FROM attempt a WHERE (a.tenant_id, a.endpoint_id, a.seq) = (o.tenant_id, o.endpoint_id, o.seq)
               AND a.event_id = o.event_id AND a.outcome = 1) AS is_delivered,
       (SELECT count(*) FROM decision d
        WHERE (d.tenant_id, d.endpoint_id, d.seq) = (o.tenant_id, o.endpoint_id, o.seq)) AS decisions,
       (SELECT extract(epoch FROM min(d.time))::float8 FROM decision d
        WHERE (d.tenant_id, d.endpoint_id, d.seq) = (o.tenant_id, o.endpoint_id, o.seq)) AS decided_at,
       EXISTS (SELECT FROM parked p
               WHERE (p.tenant_id, p.endpoint_id, p.seq) = (o.tenant_id, o.endpoint_id, o.seq)) AS is_parked
FROM outbox o
JOIN endpoint e ON (e.tenant_id, e.endpoint_id) = (o.tenant_id, o.endpoint_id)
LEFT JOIN endpoint_revision r ON (r.tenant_id, r.endpoint_id, r.revision) = (o.tenant_id, o.endpoint_id, o.revision)
ORDER BY 1, 2"""
PLACES = """
SELECT e.name, o.seq, o.event_id, extract(epoch FROM o.time)::float8
FROM outbox o JOIN endpoint e USING (tenant_id, endpoint_id)"""
CURSORS = "SELECT e.name, c.seq FROM cursor c JOIN endpoint e USING (tenant_id, endpoint_id)"
HALTS = "SELECT e.name, count(*) FROM halt h JOIN endpoint e USING (tenant_id, endpoint_id) GROUP BY 1"

UNSETTLED = """
SELECT (SELECT count(*) FROM outbox o JOIN cursor c USING (tenant_id, endpoint_id) WHERE o.seq > c.seq)
     + (SELECT count(*) FROM parked) + (SELECT count(*) FROM halt)"""

PASSED_OVER = """
SELECT e.name || '/' || o.seq || ' (' || o.event_id || ') is below the cursor and neither done nor parked'
FROM cursor c
JOIN endpoint e USING (tenant_id, endpoint_id)
JOIN outbox o USING (tenant_id, endpoint_id)
LEFT JOIN attempt a ON (a.tenant_id, a.endpoint_id, a.seq) = (o.tenant_id, o.endpoint_id, o.seq)
                       AND a.event_id = o.event_id AND a.outcome = 1
LEFT JOIN decision d ON (d.tenant_id, d.endpoint_id, d.seq) = (o.tenant_id, o.endpoint_id, o.seq)
LEFT JOIN parked p ON (p.tenant_id, p.endpoint_id, p.seq) = (o.tenant_id, o.endpoint_id, o.seq)
WHERE o.seq <= c.seq AND o.seq > c.seq - 500 AND a.seq IS NULL AND d.seq IS NULL AND p.seq IS NULL"""
"""One statement, so one snapshot: what stands at or below a cursor and is neither terminal nor durably parked."""


async def passed_over(connection: asyncpg.Connection) -> list[str]:
    """Rows that a low watermark has passed and must not have, at this moment."""
    return [found for (found,) in await connection.fetch(PASSED_OVER)]


async def is_settled(connection: asyncpg.Connection) -> bool:
    """Nothing is left above a cursor, aside, or halted."""
    return await connection.fetchval(UNSETTLED) == 0


LEFT = """
SELECT e.name, c.seq AS cursor, l.owner, l.epoch, h.circuits,
       array(SELECT o.seq FROM outbox o
             WHERE (o.tenant_id, o.endpoint_id) = (e.tenant_id, e.endpoint_id) AND o.seq > c.seq
             ORDER BY 1 LIMIT 5) AS pending,
       array(SELECT p.seq || ' due ' || p.due_time FROM parked p
             WHERE (p.tenant_id, p.endpoint_id) = (e.tenant_id, e.endpoint_id) ORDER BY p.seq LIMIT 5) AS parked
FROM cursor c JOIN endpoint e USING (tenant_id, endpoint_id) JOIN lease l USING (partition)
LEFT JOIN endpoint_health h USING (tenant_id, endpoint_id)"""


async def unsettled(connection: asyncpg.Connection) -> list[str]:
    """What is left, endpoint by endpoint, for whoever looks into it."""
    return [str(dict(row)) for row in await connection.fetch(LEFT)]


async def read_record(
    connection: asyncpg.Connection,
    publishers: Iterable[SteadyPublisher | Doubter],
    receipts: Sequence[Receipt],
    endpoints: Sequence[str],
    *,
    has_lost: bool = False,
    kept_rows: Sequence[Row] = (),
) -> Record:
    """All that there is to judge, at rest. Where a failover has lost commits (`has_lost`), decisions may have been
    taken anew: when they were first taken is not known then. `kept_rows` were read before their day was dropped."""
    rows = await read_rows(connection)
    if has_lost:
        rows = [replace(row, decided_at=None) for row in rows]
    there = {(row.endpoint, row.sequence) for row in rows}
    rows += [row for row in kept_rows if (row.endpoint, row.sequence) not in there]
    return Record(
        acknowledged={publisher.name: publisher.ids for publisher in publishers},
        refused=(),
        receipts=receipts,
        rows=rows,
        cursors=dict(await connection.fetch(CURSORS)),
        halts=dict(await connection.fetch(HALTS)),
        endpoints=endpoints,
    )


async def read_rows(connection: asyncpg.Connection) -> list[Row]:
    """Every delivery that the database has. Its clock is taken to be this machine's."""
    to_monotonic = time.monotonic() - time.time()
    return [
        Row(
            endpoint=row["endpoint"],
            sequence=row["seq"],
            event_id=row["event_id"],
            ordering_key=row["ordering_key"],
            mode=row["mode"],
            is_delivered=row["is_delivered"],
            decisions=row["decisions"],
            is_parked=row["is_parked"],
            decided_at=None if row["decided_at"] is None else row["decided_at"] + to_monotonic,
            is_replay=row["is_replay"],
        )
        for row in await connection.fetch(ROWS)
    ]


def receipts_of(requests: Iterable[Request]) -> list[Receipt]:
    """Requests as the checker wants them."""
    return [
        Receipt(
            endpoint=request.endpoint,
            sequence=request.sequence,
            event_id=request.event_id,
            ordering_key=request.headers.get("webhook-ordering-key") or None,
            body=request.body,
            at=request.at_s,
            status=request.status,
            answered_at=request.answered_at_s,
        )
        for request in requests
    ]
