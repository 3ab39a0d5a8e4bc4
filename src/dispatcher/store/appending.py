"""Appends deliveries that are no publish: replays, backfills, redrives. A sequence is never rewound.

The event is copied into the present day, so that its retention is that of its own delivery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from dispatcher.model import EndpointKey
from dispatcher.store.database import Connection, columns


class EndpointGoneError(Exception):
    """The endpoint has been deleted: nothing can be appended to it any more."""


@dataclass(frozen=True, slots=True)
class Copy:
    """An event to deliver again. `published_time` is the original's; `replay_of` the sequence repeated, 0 for none."""

    event_id: str
    published_time: datetime
    type: str
    ordering_key: str | None
    content_type: str
    data: bytes
    attributes: dict[str, Any] | None
    source: str | None
    subject: str | None
    event_time: datetime | None
    traceparent: str | None
    replay_of: int


LOCK_ENDPOINT = """
SELECT revision FROM endpoint WHERE tenant_id = $1 AND endpoint_id = $2 AND delete_time IS NULL FOR NO KEY UPDATE"""


async def lock(connection: Connection, key: EndpointKey) -> int:
    """Lock the endpoint as publish() does, before anything else; returns its revision. Raises EndpointGoneError."""
    revision: int | None = await connection.fetchval(LOCK_ENDPOINT, key.tenant_id, key.endpoint_id)
    if revision is None:
        raise EndpointGoneError(str(key.endpoint_id))
    return revision


HIGHEST = """
SELECT h.seq, greatest(clock_timestamp(), h.time) AS time FROM highest_sequence($1, $2) h"""
# The same event twice in one instant is the same copy.
INSERT_EVENTS = """
INSERT INTO event (tenant_id, event_id, time, type, ordering_key, content_type, data, attributes, source, subject,
                   event_time, traceparent, copied_from)
SELECT $1, c.event_id, $2, c.type, c.ordering_key, c.content_type, c.data, c.attributes::jsonb, c.source, c.subject,
       c.event_time, c.traceparent, c.published_time
FROM unnest($3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::bytea[], $9::text[], $10::text[],
            $11::text[], $12::timestamptz[], $13::text[])
     c(event_id, published_time, type, ordering_key, content_type, data, attributes, source, subject, event_time,
       traceparent)
ON CONFLICT DO NOTHING"""
INSERT_ROWS = """
INSERT INTO outbox (tenant_id, endpoint_id, seq, time, event_id, event_time, type, ordering_key, revision, data_bytes,
                    replay_of)
SELECT $1, $2, $3 + c.i, $4, c.event_id, $4, c.type, c.ordering_key, $5, c.data_bytes, c.replay_of
FROM unnest($6::text[], $7::text[], $8::text[], $9::integer[], $10::bigint[])
     WITH ORDINALITY c(event_id, type, ordering_key, data_bytes, replay_of, i)"""


async def append(connection: Connection, key: EndpointKey, revision: int, copies: Sequence[Copy]) -> int:
    """Append copies, distinct by event id, to an endpoint that `lock` has locked; returns the first new sequence."""
    (highest,) = await connection.fetch(HIGHEST, key.tenant_id, key.endpoint_id)
    base, time = highest["seq"], highest["time"]
    await connection.execute(INSERT_EVENTS, key.tenant_id, time, *columns([_event(copy) for copy in copies], 11))
    rows = [(c.event_id, c.type, c.ordering_key, len(c.data), c.replay_of) for c in copies]
    await connection.execute(INSERT_ROWS, key.tenant_id, key.endpoint_id, base, time, revision, *columns(rows, 5))
    return int(base) + 1


def _event(copy: Copy) -> tuple[object, ...]:
    return (
        copy.event_id,
        copy.published_time,
        copy.type,
        copy.ordering_key,
        copy.content_type,
        copy.data,
        None if copy.attributes is None else orjson.dumps(copy.attributes).decode(),
        copy.source,
        copy.subject,
        copy.event_time,
        copy.traceparent,
    )
