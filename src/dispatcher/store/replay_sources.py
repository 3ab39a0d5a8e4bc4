"""What a replay reads: the next events in order, and where it stands then. Reads only; nothing here is locked.

A backfill misses and doubles nothing beside the live subscription:
- An event published with the endpoint among its routes has a row in the endpoint's outbox; it is left out by that row.
- One published without it has none. Its time may lie a little after the endpoint's creation, since publish() reads it
  after it has checked the routes; so a backfill looks until its own creation plus the longest publish.
- A commit may show later than others with a later time; so a backfill never reads events younger than the longest
  publish (`settled_before`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from dispatcher.model import EndpointKey
from dispatcher.store.appending import Copy
from dispatcher.store.database import Connection, Database, columns
from dispatcher.store.fence import probing
from dispatcher.store.replays import Replay, ReplayKind, Step

SCAN_ROWS_MAX = 1000
"""Rows one step looks at, whether they match or not."""
COPY_BYTES_MAX = 4 * 1024 * 1024
"""Payload that one step appends; a single larger event goes alone."""
WINDOW_MIN_S = 60.0
WINDOWS_MAX = 64
"""Windows of time that one step of a backfill looks at where there are few events; each is twice the one before."""

TypeMatcher = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Selected:
    """Rows found, and the position after them. `is_end`: there is nothing behind it."""

    copies: Sequence[Copy]
    position: Mapping[str, Any]
    is_end: bool


async def next_step(
    db: Database, replay: Replay, matches: TypeMatcher, limit: int, settled_before: datetime
) -> Step | None:
    """The next step of up to `limit` copies; None where nothing can be said yet."""
    match replay.kind:
        case ReplayKind.REPLAY_EVENTS:
            return await _from_outbox(db, replay, matches, limit)
        case ReplayKind.BACKFILL_ENDPOINT:
            return await _from_events(db, replay, matches, limit, settled_before)
        case ReplayKind.REDRIVE_DEAD_LETTERS:
            return await _from_letters(db, replay, limit)


# Deliveries of a replay are left out, or a replay of a replay would double. What is counted is what is scanned.
OF_OUTBOX = """
       EXISTS (SELECT FROM attempt a
               WHERE a.tenant_id = o.tenant_id AND a.endpoint_id = o.endpoint_id AND a.seq = o.seq
                 AND a.event_id = o.event_id AND a.outcome = 1 AND a.time >= o.time - interval '1 hour'
       ) AS is_delivered,
       d.kind
FROM outbox o
LEFT JOIN decision d ON d.tenant_id = o.tenant_id AND d.endpoint_id = o.endpoint_id AND d.seq = o.seq
                    AND d.event_id = o.event_id
WHERE o.tenant_id = $1 AND o.endpoint_id = $2 AND o.seq > $3 AND o.seq <= $4 AND o.time >= $5 AND o.time < $6
  AND o.replay_of IS NULL
ORDER BY o.seq LIMIT $7"""
SCAN_OUTBOX = f"SELECT o.seq, o.time, o.event_id, o.event_time, o.type,{OF_OUTBOX}"


async def _from_outbox(db: Database, replay: Replay, matches: TypeMatcher, limit: int) -> Step:
    said, key = replay.arguments, replay.key
    async with probing(db) as connection:
        rows = await connection.fetch(
            SCAN_OUTBOX,
            key.tenant_id,
            key.endpoint_id,
            int(replay.position["seq"]),
            int(said["end_seq"]),
            datetime.fromisoformat(said["start_time"]),
            datetime.fromisoformat(said["end_time"]),
            SCAN_ROWS_MAX,
        )
        chosen, last = _choose(rows, lambda row: matches(row["type"]) and is_selected(said["selection"], row), limit)
        found = await _copies(connection, key, [(r["event_id"], r["event_time"], r["seq"]) for r in chosen])
    copies = _within_bytes(found)
    if len(copies) < len(found):
        last = copies[-1].replay_of
    is_end = len(rows) < SCAN_ROWS_MAX and (not rows or last == rows[-1]["seq"])
    return Step(copies, {"seq": last or replay.position["seq"]}, is_end)


def is_selected(selection: str, row: asyncpg.Record) -> bool:
    """Whether a delivery's state is the one asked for; those still pending never are: they come by themselves."""
    match selection:
        case "DELIVERED":
            return bool(row["is_delivered"])
        case "DEAD_LETTERED":
            return not row["is_delivered"] and row["kind"] in (1, 3)
        case _:
            return bool(row["is_delivered"]) or row["kind"] is not None


def _choose(
    rows: Sequence[asyncpg.Record], wanted: Callable[[asyncpg.Record], bool], limit: int
) -> tuple[list[asyncpg.Record], int]:
    """The first `limit` wanted rows, distinct by event, and the sequence up to which all were looked at."""
    chosen: list[asyncpg.Record] = []
    seen: set[str] = set()
    last = 0
    for row in rows:
        if wanted(row):
            if len(chosen) == limit or row["event_id"] in seen:
                return chosen, last
            chosen.append(row)
            seen.add(row["event_id"])
        last = row["seq"]
    return chosen, last


FETCH_EVENTS = """
SELECT e.event_id, coalesce(e.copied_from, e.time) AS published_time, e.type, e.ordering_key, e.content_type, e.data,
       e.attributes, e.source, e.subject, e.event_time, e.traceparent, w.seq
FROM unnest($2::text[], $3::timestamptz[], $4::bigint[]) WITH ORDINALITY w(event_id, time, seq, i)
CROSS JOIN LATERAL (
    SELECT * FROM event e
    WHERE e.tenant_id = $1 AND e.event_id = w.event_id AND e.time = w.time AND e.expunge_time IS NULL LIMIT 1
) e
ORDER BY w.i"""


async def _copies(connection: Connection, key: EndpointKey, wanted: Sequence[tuple[str, datetime, int]]) -> list[Copy]:
    """The events with their payloads, in the order given; one that is gone is left out."""
    if not wanted:
        return []
    rows = await connection.fetch(FETCH_EVENTS, key.tenant_id, *columns(wanted, 3))
    return [_copy(row, row["seq"]) for row in rows]


def _within_bytes(copies: Sequence[Copy]) -> list[Copy]:
    kept: list[Copy] = []
    room = COPY_BYTES_MAX
    for copy in copies:
        if kept and len(copy.data) > room:
            break
        kept.append(copy)
        room -= len(copy.data)
    return kept


SCAN_EVENTS = """
SELECT e.event_id, e.time AS published_time, e.ordinal, e.type, e.ordering_key, e.content_type, e.data, e.attributes,
       e.source, e.subject, e.event_time, e.traceparent
FROM event e
WHERE e.tenant_id = $1 AND e.time >= $2 AND e.time < $3 AND e.copied_from IS NULL AND e.expunge_time IS NULL
  AND (e.time, e.ordinal, e.event_id) > ($2, $4, $5)
ORDER BY e.time, e.ordinal, e.event_id LIMIT $6"""
# An endpoint that was not there yet has no rows; its creation bounds the search.
HAS_ALREADY = """
SELECT o.event_id FROM outbox o
WHERE o.tenant_id = $1 AND o.endpoint_id = $2 AND o.time >= $3 AND o.time <= $4 AND o.event_id = ANY ($5::text[])"""


async def _from_events(
    db: Database, replay: Replay, matches: TypeMatcher, limit: int, settled_before: datetime
) -> Step | None:
    said, key, at = replay.arguments, replay.key, replay.position
    stop = datetime.fromisoformat(said["end_time"])
    time, ordinal, event_id = datetime.fromisoformat(at["time"]), int(at["ordinal"]), str(at["event_id"])
    window_s = WINDOW_MIN_S
    async with db.transaction() as connection:
        for _ in range(WINDOWS_MAX):
            until = min(time + timedelta(seconds=window_s), stop, settled_before)
            if until <= time:
                return None if time < stop else Step((), dict(at), is_end=True)
            rows = await connection.fetch(SCAN_EVENTS, key.tenant_id, time, until, ordinal, event_id, SCAN_ROWS_MAX)
            had = await _had_already(connection, replay, rows)
            copies, last = _choose_events(rows, matches, had, limit)
            if last is not None and (copies or len(rows) == SCAN_ROWS_MAX):
                position = _event_position(last["published_time"], last["ordinal"], last["event_id"])
                return Step(copies, position, is_end=False)
            time, ordinal, event_id = until, -1, ""
            if time >= stop:
                return Step((), _event_position(time, -1, ""), is_end=True)
            window_s *= 2
    return Step((), _event_position(time, ordinal, event_id), is_end=False)


async def _had_already(connection: Connection, replay: Replay, rows: Sequence[asyncpg.Record]) -> set[str]:
    created = datetime.fromisoformat(replay.arguments["endpoint_create_time"])
    recent = [row for row in rows if row["published_time"] >= created]
    if not recent:
        return set()
    found = await connection.fetch(
        HAS_ALREADY,
        replay.key.tenant_id,
        replay.key.endpoint_id,
        recent[0]["published_time"],
        recent[-1]["published_time"],
        [row["event_id"] for row in recent],
    )
    return {row["event_id"] for row in found}


def _choose_events(
    rows: Sequence[asyncpg.Record], matches: TypeMatcher, had: set[str], limit: int
) -> tuple[list[Copy], asyncpg.Record | None]:
    """The first wanted events, and the last row looked at."""
    copies: list[Copy] = []
    seen: set[str] = set()
    room, last = COPY_BYTES_MAX, None
    for row in rows:
        if matches(row["type"]) and row["event_id"] not in had:
            is_full = len(copies) == limit or (copies and len(row["data"]) > room)
            if is_full or row["event_id"] in seen:
                return copies, last
            copies.append(_copy(row, 0))
            seen.add(row["event_id"])
            room -= len(row["data"])
        last = row
    return copies, last


def _event_position(time: datetime, ordinal: int, event_id: str) -> dict[str, Any]:
    return {"time": time.isoformat(), "ordinal": ordinal, "event_id": event_id}


SCAN_LETTERS = """
SELECT d.seq, d.event_id, d.event_time AS published_time, d.type, d.ordering_key, d.content_type,
       coalesce(d.own_data, p.data) AS data
FROM (
    SELECT d.seq, d.event_id, d.time AS event_time, d.type, d.ordering_key, d.content_type, d.own_data
    FROM dead_letter d
    JOIN decision x ON x.tenant_id = d.tenant_id AND x.endpoint_id = d.endpoint_id AND x.seq = d.seq
    WHERE d.tenant_id = $1 AND d.endpoint_id = $2 AND d.seq > $3 AND d.seq <= $4 AND d.state = 'OPEN'
      AND ($5::text IS NULL OR d.type = $5) AND ($6::text IS NULL OR d.ordering_key = $6)
      AND ($7::text IS NULL OR x.reason = $7) AND d.time >= $8 AND d.time < $9
    ORDER BY d.seq LIMIT $10
) d
JOIN dead_letter_payload p ON p.tenant_id = $1 AND p.event_id = d.event_id
ORDER BY d.seq"""


async def _from_letters(db: Database, replay: Replay, limit: int) -> Step:
    said, key = replay.arguments, replay.key
    rows = await db.fetch(
        SCAN_LETTERS,
        key.tenant_id,
        key.endpoint_id,
        int(replay.position["seq"]),
        int(said["end_seq"]),
        said.get("event_type"),
        said.get("ordering_key"),
        said.get("reason"),
        datetime.fromisoformat(said["start_time"]),
        datetime.fromisoformat(said["end_time"]),
        limit,
    )
    distinct: dict[str, Copy] = {}
    for row in rows:
        if row["event_id"] in distinct:
            break
        distinct[row["event_id"]] = letter_copy(row)
    copies = _within_bytes(list(distinct.values()))
    is_end = len(rows) < limit and len(copies) == len(rows)
    return Step(copies, {"seq": copies[-1].replay_of if copies else int(said["end_seq"])}, is_end)


def letter_copy(row: asyncpg.Record) -> Copy:
    """What a dead letter keeps of its event: all that a webhook is made of."""
    return Copy(
        event_id=row["event_id"],
        published_time=row["published_time"],
        type=row["type"],
        ordering_key=row["ordering_key"],
        content_type=row["content_type"],
        data=row["data"],
        attributes=None,
        source=None,
        subject=None,
        event_time=None,
        traceparent=None,
        replay_of=row["seq"],
    )


def _copy(row: asyncpg.Record, replay_of: int) -> Copy:
    return Copy(
        event_id=row["event_id"],
        published_time=row["published_time"],
        type=row["type"],
        ordering_key=row["ordering_key"],
        content_type=row["content_type"],
        data=row["data"],
        attributes=row["attributes"],
        source=row["source"],
        subject=row["subject"],
        event_time=row["event_time"],
        traceparent=row["traceparent"],
        replay_of=replay_of,
    )
