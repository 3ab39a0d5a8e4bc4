"""What keeps an endpoint from delivering: halts, parked deliveries, its health, its tenant's pause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from dispatcher.model import CatchUp, EndpointKey, OrderingMode, TenantState
from dispatcher.policy import RetryOverrides
from dispatcher.store.database import Connection, Database
from dispatcher.store.deliveries import Delivery, find
from dispatcher.store.fence import probing
from dispatcher.store.settings_json import tenant_settings_from_json


@dataclass(frozen=True, slots=True)
class HaltStatus:
    """A halt. `delivery` is None where it is no longer on record; `waiting_count` are the PENDING ones behind it."""

    seq: int
    event_id: str
    ordering_key: str | None
    reason: str
    time: datetime
    delivery: Delivery | None
    waiting_count: int


@dataclass(frozen=True, slots=True)
class EndpointTroubles:
    """`parked_*` tell of parked deliveries that are PENDING, counted up to a bound, `parked_due` of those that have
    failed and are not halted; `circuits` as `store.health` has them. `catch_up` is the endpoint's or its tenant's,
    whichever is slower."""

    halt: HaltStatus | None
    halt_count: int
    parked_count: int
    lowest_parked: int | None
    lowest_parked_failed: int | None
    oldest_parked_time: datetime | None
    parked_due: datetime | None
    circuits: Sequence[Mapping[str, Any]]
    throttle_per_s: float | None
    failing_since: datetime | None
    exhausted_heads: int
    catch_up: CatchUp | None
    tenant_state: TenantState
    tenant_retry: RetryOverrides


# What only the egress proxy failed has used up no attempt, and few of those are on record: that it waits tells as well.
SELECT_PARKED = """
SELECT count(*) AS count, min(p.seq) AS lowest, min(p.time) AS oldest,
       min(p.seq) FILTER (WHERE x.has_failed) AS lowest_failed,
       min(p.due_time) FILTER (WHERE x.has_failed AND t.seq IS NULL) AS due
FROM (SELECT p.seq, p.event_id, p.time, p.attempts, p.due_time FROM parked p
      WHERE p.tenant_id = $1 AND p.endpoint_id = $2 ORDER BY p.seq LIMIT $3) p
LEFT JOIN halt t ON t.tenant_id = $1 AND t.endpoint_id = $2 AND t.seq = p.seq
CROSS JOIN LATERAL (
    SELECT p.attempts > 0 OR p.due_time > clock_timestamp() OR EXISTS (
        SELECT FROM attempt a WHERE a.tenant_id = $1 AND a.endpoint_id = $2 AND a.seq = p.seq
          AND a.event_id = p.event_id AND a.time >= p.time - interval '1 hour') AS has_failed
) x
WHERE NOT EXISTS (SELECT FROM decision d WHERE d.tenant_id = $1 AND d.endpoint_id = $2 AND d.seq = p.seq
                    AND d.event_id = p.event_id)
  AND NOT EXISTS (SELECT FROM attempt a WHERE a.tenant_id = $1 AND a.endpoint_id = $2 AND a.seq = p.seq
                    AND a.event_id = p.event_id AND a.outcome = 1 AND a.time >= p.time - interval '1 hour')"""
SELECT_HALTS = """
SELECT h.seq, h.event_id, h.ordering_key, h.ordering_mode, h.reason, h.time, count(*) OVER () AS halts
FROM halt h WHERE h.tenant_id = $1 AND h.endpoint_id = $2 ORDER BY h.seq LIMIT 1"""
# Behind a halt waits, in ORDERED, all; in ORDERED_BY_KEY what has its key; in UNORDERED nothing.
SELECT_WAITING = """
WITH above AS MATERIALIZED (
    SELECT o.seq, o.event_id, o.time, o.ordering_key FROM outbox o
    WHERE o.tenant_id = $1 AND o.endpoint_id = $2 AND o.seq > $3
      AND o.time >= (SELECT c.time FROM cursor c WHERE c.tenant_id = $1 AND c.endpoint_id = $2)
    ORDER BY o.seq LIMIT $6
), parked_above AS (
    SELECT p.seq, p.event_id, p.time, p.ordering_key FROM parked p
    WHERE p.tenant_id = $1 AND p.endpoint_id = $2 AND p.seq > $3 ORDER BY p.seq LIMIT $6
)
SELECT count(*) FROM (SELECT * FROM above UNION SELECT * FROM parked_above) w
WHERE ($4::boolean OR w.ordering_key IS NOT DISTINCT FROM $5)
  AND NOT EXISTS (SELECT FROM decision d WHERE d.tenant_id = $1 AND d.endpoint_id = $2 AND d.seq = w.seq
                    AND d.event_id = w.event_id)
  AND NOT EXISTS (SELECT FROM attempt a WHERE a.tenant_id = $1 AND a.endpoint_id = $2 AND a.seq = w.seq
                    AND a.event_id = w.event_id AND a.outcome = 1 AND a.time >= w.time - interval '1 hour')"""
SELECT_HEALTH = """
SELECT t.state AS tenant_state, t.settings AS tenant_settings, t.resume_rate AS tenant_rate,
       t.resume_time AS tenant_time, e.resume_rate,
       e.resume_time, h.failing_since, coalesce(h.exhausted_heads, 0) AS exhausted_heads, h.circuits, h.throttle_per_s
FROM endpoint e
JOIN tenant t ON t.tenant_id = e.tenant_id
LEFT JOIN endpoint_health h ON h.tenant_id = e.tenant_id AND h.endpoint_id = e.endpoint_id
WHERE e.tenant_id = $1 AND e.endpoint_id = $2"""


async def read(db: Database, key: EndpointKey, rows_max: int) -> EndpointTroubles:
    """What is on record of an endpoint's troubles, looking at up to `rows_max` rows for each count."""
    names = (key.tenant_id, key.endpoint_id)
    async with probing(db) as connection:
        (parked,) = await connection.fetch(SELECT_PARKED, *names, rows_max)
        halt = await connection.fetchrow(SELECT_HALTS, *names)
        waiting = 0 if halt is None else await _waiting(connection, key, halt, rows_max)
        (health,) = await connection.fetch(SELECT_HEALTH, *names)
    delivery = None if halt is None else await find(db, key, halt["seq"])
    return EndpointTroubles(
        halt=None if halt is None else _halt(halt, delivery, waiting),
        halt_count=0 if halt is None else halt["halts"],
        parked_count=parked["count"],
        lowest_parked=parked["lowest"],
        lowest_parked_failed=parked["lowest_failed"],
        oldest_parked_time=parked["oldest"],
        parked_due=parked["due"],
        circuits=health["circuits"] or (),
        throttle_per_s=health["throttle_per_s"],
        failing_since=health["failing_since"],
        exhausted_heads=health["exhausted_heads"],
        catch_up=_catch_up(health),
        tenant_state=TenantState(health["tenant_state"]),
        tenant_retry=tenant_settings_from_json(health["tenant_settings"])[0],
    )


async def _waiting(connection: Connection, key: EndpointKey, halt: asyncpg.Record, rows_max: int) -> int:
    mode = OrderingMode(halt["ordering_mode"])
    if mode is OrderingMode.UNORDERED:
        return 0
    count: int = await connection.fetchval(
        SELECT_WAITING,
        key.tenant_id,
        key.endpoint_id,
        halt["seq"],
        mode is OrderingMode.ORDERED,
        halt["ordering_key"],
        rows_max,
    )
    return count


def _halt(row: asyncpg.Record, delivery: Delivery | None, waiting: int) -> HaltStatus:
    return HaltStatus(row["seq"], row["event_id"], row["ordering_key"], row["reason"], row["time"], delivery, waiting)


def _catch_up(row: asyncpg.Record) -> CatchUp | None:
    found = [
        CatchUp(rate, time)
        for rate, time in ((row["resume_rate"], row["resume_time"]), (row["tenant_rate"], row["tenant_time"]))
        if rate is not None
    ]
    return min(found, key=lambda catch_up: catch_up.per_second, default=None)
