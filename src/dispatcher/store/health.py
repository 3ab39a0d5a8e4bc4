"""How endpoints fare, on record: written lazily by their owners, and the disabling that may follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import orjson

from dispatcher.model import EndpointKey, EndpointState
from dispatcher.store import forms
from dispatcher.store.database import Database
from dispatcher.store.fence import RAISE_SYNCHRONOUS_COMMIT, fenced, hold
from dispatcher.store.forms import by_tenant
from dispatcher.store.operational import OperationalEvent, record


@dataclass(frozen=True, slots=True)
class HealthRecord:
    """What an owner writes of one endpoint. `circuits` are those not closed: url_index, state, open_time, probe_time
    (ISO 8601)."""

    key: EndpointKey
    epoch: int
    failing_since: datetime | None
    exhausted_heads: int
    circuits: Sequence[Mapping[str, Any]]
    throttle_per_s: float | None
    trouble: str | None

    @property
    def is_well(self) -> bool:
        """Nothing needs to be on record."""
        return (
            self.failing_since is None
            and not self.exhausted_heads
            and not self.circuits
            and self.throttle_per_s is None
            and self.trouble is None
        )


UPSERT = by_tenant(
    """
INSERT INTO endpoint_health (tenant_id, endpoint_id, epoch, failing_since, exhausted_heads, circuits, throttle_per_s,
                             trouble, update_time)
SELECT h.tenant_id, h.endpoint_id, h.epoch, h.failing_since, h.exhausted_heads, h.circuits::jsonb, h.throttle_per_s,
       h.trouble, clock_timestamp()
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::timestamptz[], $5::integer[], $6::text[], $7::double precision[],
            $8::text[])
     h(tenant_id, endpoint_id, epoch, failing_since, exhausted_heads, circuits, throttle_per_s, trouble)
ORDER BY h.tenant_id, h.endpoint_id
ON CONFLICT (tenant_id, endpoint_id) DO UPDATE
SET epoch = excluded.epoch, failing_since = excluded.failing_since, exhausted_heads = excluded.exhausted_heads,
    circuits = excluded.circuits, throttle_per_s = excluded.throttle_per_s, trouble = excluded.trouble,
    update_time = excluded.update_time"""
)
DELETE = by_tenant(
    """
DELETE FROM endpoint_health h USING unnest($1::uuid[], $2::uuid[]) d(tenant_id, endpoint_id)
WHERE h.tenant_id = d.tenant_id AND h.endpoint_id = d.endpoint_id"""
)


async def write(
    db: Database, epochs: Mapping[int, int], records: Sequence[HealthRecord], events: Sequence[OperationalEvent]
) -> set[int]:
    """Write how endpoints fare, and what is to be told of it, for the partitions still held; returns those.

    Raises UnavailableError; then nothing or everything is written, and events may be told twice.
    """
    async with fenced(db, epochs) as (connection, held):
        kept = [r for r in records if r.key.partition in held]
        ill = [_row(r) for r in kept if not r.is_well]
        well = [(r.key.tenant_id, r.key.endpoint_id) for r in kept if r.is_well]
        if ill:
            await forms.execute(connection, UPSERT, ill)
        if well:
            await forms.execute(connection, DELETE, well)
        await record(connection, [event for event in events if event.key.partition in held])
    return held


def _row(r: HealthRecord) -> tuple[object, ...]:
    return (
        r.key.tenant_id,
        r.key.endpoint_id,
        r.epoch,
        r.failing_since,
        r.exhausted_heads,
        orjson.dumps(list(r.circuits)).decode(),
        r.throttle_per_s,
        r.trouble,
    )


# The lock order is endpoint, then lease.
LOCK_ENDPOINT = """
SELECT FROM endpoint
WHERE tenant_id = $1 AND endpoint_id = $2 AND state = $3 AND revision = $4 AND delete_time IS NULL
FOR NO KEY UPDATE"""
SET_DISABLED = """
UPDATE endpoint SET state = $3, state_reason = $4, etag = $5, update_time = clock_timestamp()
WHERE tenant_id = $1 AND endpoint_id = $2"""
MARK_TROUBLE = """
INSERT INTO endpoint_health (tenant_id, endpoint_id, epoch, exhausted_heads, circuits, trouble, update_time)
VALUES ($1, $2, $3, 0, '[]'::jsonb, 'DISABLED', clock_timestamp())
ON CONFLICT (tenant_id, endpoint_id) DO UPDATE SET trouble = 'DISABLED', update_time = clock_timestamp()"""


async def disable(
    db: Database, epoch: int, key: EndpointKey, revision: int, reason: str, event: OperationalEvent
) -> bool:
    """Disable an endpoint that is ACTIVE and of the revision that fared so ill; False where it is no longer, or where
    the lease is gone. Raises UnavailableError."""
    timeline = db.timeline
    async with db.transaction() as connection:
        await connection.execute(RAISE_SYNCHRONOUS_COMMIT)
        locked = await connection.fetch(LOCK_ENDPOINT, key.tenant_id, key.endpoint_id, EndpointState.ACTIVE, revision)
        if not locked or not await hold(connection, {key.partition: epoch}, timeline):
            return False
        await connection.execute(SET_DISABLED, key.tenant_id, key.endpoint_id, EndpointState.DISABLED, reason, uuid4())
        await connection.execute(MARK_TROUBLE, key.tenant_id, key.endpoint_id, epoch)
        await record(connection, [event])
    return True
