"""Events read back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg

from dispatcher.errors import NotFoundError
from dispatcher.model import StoredEvent
from dispatcher.store import filters, tenants
from dispatcher.store.database import Database
from dispatcher.store.paging import SCAN_ROWS_MAX, Page, PageRequest, decode_token, encode_token
from dispatcher.store.windows import RANGE_MAX, TIME_MIN, Window, bounded_window

FILTER_RULES = {"type": filters.TEXT, "ordering_key": filters.TEXT, "publish_time": filters.TIME_RANGE}
PAGE_DATA_BYTES_MAX = 8 * 1024 * 1024
"""Payload bytes of one page that is read with payloads; a single larger event still makes a page of its own."""

# Newest partition first; an index probe in each until one is found.
# A replay's copy is the same event, told with the time it was published at.
SELECT_EVENT = """
SELECT tenant_id, event_id, coalesce(copied_from, time) AS time, type, ordering_key, content_type,
       CASE WHEN $3 THEN data END AS data, attributes, source, subject, event_time, expunge_time
FROM event WHERE tenant_id = $1 AND event_id = $2 ORDER BY time DESC LIMIT 1"""


async def get(db: Database, tenant: str, event_id: str, *, with_data: bool = True) -> StoredEvent:
    """The newest event of this id. Errors: NotFoundError (tenant or event)."""
    owner = await tenants.get(db, tenant)
    row = await db.fetchrow(SELECT_EVENT, owner.tenant_id, event_id, with_data)
    if row is None:
        raise NotFoundError("webhooks.dispatcher/Event", f"tenants/{tenant}/events/{event_id}")
    return _event(row, row["data"])


LIST_EVENTS = """
WITH scanned AS MATERIALIZED (
    SELECT tenant_id, event_id, time, type, ordering_key, content_type, octet_length(data) AS data_bytes, attributes,
           source, subject, event_time, copied_from, expunge_time
    FROM event
    WHERE tenant_id = $1 AND (event_id, time) > ($2, $3) AND time >= $4 AND time < $5
    ORDER BY event_id, time LIMIT $6
)
SELECT n.scan_count, z.scan_event_id, z.scan_time, p.*
FROM (SELECT count(*) AS scan_count FROM scanned) n
LEFT JOIN (
    SELECT event_id AS scan_event_id, time AS scan_time FROM scanned ORDER BY event_id DESC, time DESC LIMIT 1
) z ON true
LEFT JOIN (
    SELECT * FROM scanned
    WHERE time >= $7 AND time < $8 AND copied_from IS NULL AND ($9::text IS NULL OR type = $9)
      AND ($10::text IS NULL OR ordering_key = $10)
    ORDER BY event_id, time LIMIT $11
) p ON true
ORDER BY p.event_id, p.time"""
SELECT_NOW = "SELECT clock_timestamp()"


async def list_page(db: Database, tenant: str, request: PageRequest, *, with_data: bool = False) -> Page[StoredEvent]:
    """A tenant's events of at most 24 h (the last 24 h unless the filter says otherwise) in the order of their ids.

    The order is the index's, which alone can be read in bounded steps. Filter: `type`, `ordering_key`, `publish_time`.
    A page may be short or empty and still have a next one. Errors: NotFoundError, InvalidRequestError.
    """
    query = ("events", tenant, request.filter, str(with_data))
    wanted = filters.parse(request.filter, FILTER_RULES)
    window = bounded_window(wanted, "publish_time")
    position = decode_token(query, request.token, (str, datetime, datetime, datetime))
    owner = await tenants.get(db, tenant)
    if position is None:
        now: datetime = await db.fetchval(SELECT_NOW)
        window = window or Window(now - RANGE_MAX, now)
        position = ("", TIME_MIN, window.start, window.end)
    event_id, time, start, end = position
    assert isinstance(start, datetime)  # noqa: S101 -- decode_token has checked
    assert isinstance(end, datetime)  # noqa: S101 -- decode_token has checked
    window = Window(start, end)
    rows = await db.fetch(
        LIST_EVENTS,
        owner.tenant_id,
        event_id,
        time,
        window.first_day,
        window.last_day_end,
        SCAN_ROWS_MAX,
        window.start,
        window.end,
        wanted.text("type"),
        wanted.text("ordering_key"),
        request.size + 1,
    )
    found, last = _cut(rows, request.size, with_data=with_data)
    token = encode_token(query, (*last, start, end)) if last else ""
    payloads = await _payloads(db, owner.tenant_id, found) if with_data else {}
    return Page(tuple(_event(row, payloads.get((row["event_id"], row["time"]))) for row in found), token)


def _cut(
    rows: Sequence[asyncpg.Record], size: int, *, with_data: bool
) -> tuple[list[asyncpg.Record], tuple[str, datetime] | None]:
    """The rows of the page, and where the next one starts after; None where nothing can follow."""
    found = [row for row in rows if row["event_id"] is not None]
    kept, data_bytes = 0, 0
    for row in found[:size]:
        data_bytes += row["data_bytes"]
        if with_data and kept and data_bytes > PAGE_DATA_BYTES_MAX:
            break
        kept += 1
    if kept < len(found):
        return found[:kept], (found[kept - 1]["event_id"], found[kept - 1]["time"])
    end = (rows[0]["scan_event_id"], rows[0]["scan_time"]) if rows[0]["scan_count"] == SCAN_ROWS_MAX else None
    return found, end


SELECT_PAYLOADS = """
SELECT e.event_id, e.time, e.data FROM unnest($2::text[], $3::timestamptz[]) w(event_id, time)
JOIN event e ON e.tenant_id = $1 AND e.event_id = w.event_id AND e.time = w.time"""


async def _payloads(db: Database, tenant_id: UUID, rows: Sequence[asyncpg.Record]) -> dict[tuple[str, datetime], bytes]:
    found = await db.fetch(SELECT_PAYLOADS, tenant_id, [row["event_id"] for row in rows], [row["time"] for row in rows])
    return {(row["event_id"], row["time"]): row["data"] for row in found}


def _event(row: asyncpg.Record, data: bytes | None) -> StoredEvent:
    return StoredEvent(
        tenant_id=row["tenant_id"],
        event_id=row["event_id"],
        publish_time=row["time"],
        type=row["type"],
        data=data,
        content_type=row["content_type"],
        ordering_key=row["ordering_key"],
        attributes=row["attributes"] or {},
        source=row["source"],
        subject=row["subject"],
        time=row["event_time"],
        expunge_time=row["expunge_time"],
    )
