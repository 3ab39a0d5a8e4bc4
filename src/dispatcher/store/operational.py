"""Operational events: what happened to an endpoint, to be published to the tenant's own subscribers.

    cause (decision, halt, change of state) ──same transaction──▶ operational_event ──relay──▶ publish() ──▶ outbox
                                                                        └── deleted once published

They can't feed on themselves: nothing that an event of the service's own causes (a delivery whose type begins with
`dispatcher.`) is recorded, so each of them goes back to an event that a publisher sent.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from uuid_utils.compat import uuid7

from dispatcher.model import RESERVED_TYPE_PREFIX, DeadLetter, EndpointKey, Halt
from dispatcher.store import forms
from dispatcher.store.database import Connection, Database
from dispatcher.store.fence import continuing
from dispatcher.store.forms import by_tenant


class OperationalType(enum.StrEnum):
    """The types of operational events, closed."""

    ENDPOINT_DISABLED = "dispatcher.endpoint.disabled"
    ENDPOINT_RECOVERED = "dispatcher.endpoint.recovered"
    ENDPOINT_HALTED = "dispatcher.endpoint.halted"
    DELIVERY_DEAD_LETTERED = "dispatcher.delivery.dead_lettered"
    BACKLOG_HIGH = "dispatcher.backlog.high"
    CIRCUIT_OPENED = "dispatcher.circuit.opened"
    CIRCUIT_CLOSED = "dispatcher.circuit.closed"
    REPLAY_COMPLETED = "dispatcher.replay.completed"


@dataclass(frozen=True, slots=True)
class OperationalEvent:
    """Something that happened to endpoint `key`. `facts` is plain JSON, merged into the event's data.

    `cause_type` is the type of the event whose delivery caused it, None where no delivery did.
    """

    key: EndpointKey
    type: OperationalType
    facts: Mapping[str, Any]
    cause_type: str | None = None

    @property
    def feeds_on_itself(self) -> bool:
        """Caused by the delivery of an event of the service's own: never recorded."""
        return self.cause_type is not None and self.cause_type.startswith(RESERVED_TYPE_PREFIX)


def facts_of(ended: DeadLetter | Halt, reason: str) -> dict[str, Any]:
    """What subscribers are told of a delivery whose attempts are used up."""
    return {
        "sequence": ended.seq,
        "event_id": ended.event_id,
        "event_type": ended.type,
        "ordering_key": ended.ordering_key,
        "reason": reason,
        "attempts": ended.attempts,
        "last_outcome": None if ended.last_outcome is None else ended.last_outcome.name,
        "last_status_code": ended.last_status_code,
        "last_error": ended.last_error,
    }


INSERT_EVENTS = by_tenant(
    """
INSERT INTO operational_event (tenant_id, event_id, endpoint_id, partition, type, data, create_time)
SELECT o.tenant_id, o.event_id, o.endpoint_id, o.partition, o.type, o.data, clock_timestamp()
FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::smallint[], $5::text[], $6::bytea[])
     o(tenant_id, event_id, endpoint_id, partition, type, data)
ON CONFLICT DO NOTHING"""
)


async def record(db: Database | Connection, events: Sequence[OperationalEvent]) -> None:
    """Put events on record for the relay, inside the caller's transaction where a connection is given."""
    rows = [_row(event) for event in events if not event.feeds_on_itself]
    if not rows:
        return
    async with db.acquire() if isinstance(db, Database) else contextlib.nullcontext(db) as connection:
        await forms.execute(connection, INSERT_EVENTS, rows)


@dataclass(frozen=True, slots=True)
class StoredOperationalEvent:
    """A recorded event. `tenant_name` is None where the tenant has been deleted."""

    key: EndpointKey
    event_id: str
    type: str
    data: bytes
    create_time: datetime
    tenant_name: str | None
    endpoint_name: str


LOAD_ROWS_MAX = 200
"""Events relayed in one round."""
LOAD_EVENTS = """
SELECT o.tenant_id, o.event_id, o.endpoint_id, o.type, o.data, o.create_time, t.name AS tenant_name,
       e.name AS endpoint_name
FROM operational_event o
JOIN endpoint e ON e.tenant_id = o.tenant_id AND e.endpoint_id = o.endpoint_id
LEFT JOIN tenant t ON t.tenant_id = o.tenant_id AND t.delete_time IS NULL
WHERE o.partition = ANY ($1::smallint[])
ORDER BY o.create_time, o.event_id LIMIT $2"""


async def load(db: Database, partitions: Sequence[int]) -> list[StoredOperationalEvent]:
    """The oldest recorded events of these partitions."""
    rows = await db.fetch(LOAD_EVENTS, list(partitions), LOAD_ROWS_MAX)
    return [
        StoredOperationalEvent(
            key=EndpointKey(row["tenant_id"], row["endpoint_id"]),
            event_id=row["event_id"],
            type=row["type"],
            data=row["data"],
            create_time=row["create_time"],
            tenant_name=row["tenant_name"],
            endpoint_name=row["endpoint_name"],
        )
        for row in rows
    ]


DELETE_EVENT = "DELETE FROM operational_event WHERE tenant_id = $1 AND event_id = $2"


async def delete(db: Database, event: StoredOperationalEvent) -> None:
    """It is published: unless a failover has lost that, see `continuing`."""
    async with continuing(db) as connection:
        await connection.execute(DELETE_EVENT, event.key.tenant_id, event.event_id)


def _row(event: OperationalEvent) -> tuple[object, ...]:
    key, event_id = event.key, str(uuid7())
    data = {
        "type": event.type.value,
        "id": event_id,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "endpoint_uid": str(key.endpoint_id),
        **event.facts,
    }
    return key.tenant_id, event_id, key.endpoint_id, key.partition, event.type.value, orjson.dumps(data)
