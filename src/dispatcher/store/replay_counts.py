"""What a replay would append, counted up to a bound; and the arguments that fix its sources at its creation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from dispatcher.model import Endpoint
from dispatcher.store.database import Connection, Database
from dispatcher.store.fence import guard_plan
from dispatcher.store.replay_sources import OF_OUTBOX, is_selected
from dispatcher.store.replays import ReplayKind

COUNT_MAX = 1_000_000
COUNT_STEP_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller asks to be sent again. Times are aware; `end_time` None is now. `letters` filters dead letters."""

    kind: ReplayKind
    start_time: datetime | None
    end_time: datetime | None
    event_types: tuple[str, ...] = ()
    selection: str = "ALL"
    letters: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """The arguments and first position of a replay, and how much it will append, up to `COUNT_MAX`."""

    arguments: dict[str, Any]
    position: dict[str, Any]
    matched_count: int


SELECT_BOUNDS = """
SELECT clock_timestamp() AS now, h.seq, coalesce((
    SELECT max(d.seq) FROM dead_letter d WHERE d.tenant_id = $1 AND d.endpoint_id = $2), 0) AS letter_seq
FROM highest_sequence($1, $2) h"""


async def plan(
    db: Database,
    endpoint: Endpoint,
    wanted: Wanted,
    matches_any: Callable[[Sequence[str], str], bool],
    look_back_s: float,
) -> Planned:
    """Fix what a replay of `endpoint` will read, so that it never chases its own rows, and count it."""
    async with db.transaction() as connection:
        await guard_plan(connection)
        (bounds,) = await connection.fetch(SELECT_BOUNDS, endpoint.key.tenant_id, endpoint.key.endpoint_id)
        match wanted.kind:
            case ReplayKind.REPLAY_EVENTS:
                return await _plan_events(connection, endpoint, wanted, bounds, matches_any)
            case ReplayKind.BACKFILL_ENDPOINT:
                return await _plan_backfill(connection, endpoint, wanted, bounds, matches_any, look_back_s)
            case ReplayKind.REDRIVE_DEAD_LETTERS:
                return await _plan_letters(connection, endpoint, wanted, bounds)


COUNT_OUTBOX = f"SELECT o.seq, o.type,{OF_OUTBOX}"


async def _plan_events(
    connection: Connection,
    endpoint: Endpoint,
    wanted: Wanted,
    bounds: asyncpg.Record,
    matches_any: Callable[[Sequence[str], str], bool],
) -> Planned:
    start, end = wanted.start_time or bounds["now"], wanted.end_time or bounds["now"]
    arguments = {
        "start_time": start.isoformat(),
        "end_time": end.isoformat(),
        "end_seq": bounds["seq"],
        "event_types": list(wanted.event_types),
        "selection": wanted.selection,
    }
    key, after, count = endpoint.key, 0, 0
    while count < COUNT_MAX:
        rows = await connection.fetch(
            COUNT_OUTBOX, key.tenant_id, key.endpoint_id, after, bounds["seq"], start, end, COUNT_STEP_ROWS
        )
        count += sum(
            1
            for row in rows
            if is_selected(wanted.selection, row)
            and (not wanted.event_types or matches_any(wanted.event_types, row["type"]))
        )
        if len(rows) < COUNT_STEP_ROWS:
            break
        after = rows[-1]["seq"]
    return Planned(arguments, {"seq": 0}, min(count, COUNT_MAX))


COUNT_EVENTS = """
SELECT e.type, count(*) AS count FROM (
    SELECT e.type FROM event e
    WHERE e.tenant_id = $1 AND e.time >= $2 AND e.time < $3 AND e.copied_from IS NULL AND e.expunge_time IS NULL
      AND NOT EXISTS (SELECT FROM outbox o WHERE o.tenant_id = $1 AND o.endpoint_id = $4 AND o.time = e.time
                        AND o.event_id = e.event_id AND e.time >= $5)
    LIMIT $6
) e GROUP BY e.type"""


async def _plan_backfill(
    connection: Connection,
    endpoint: Endpoint,
    wanted: Wanted,
    bounds: asyncpg.Record,
    matches_any: Callable[[Sequence[str], str], bool],
    look_back_s: float,
) -> Planned:
    """Up to now, and a little further, since an event published just now may have missed the subscription."""
    start = wanted.start_time or bounds["now"]
    end = wanted.end_time or bounds["now"] + timedelta(seconds=look_back_s)
    arguments = {
        "start_time": start.isoformat(),
        "end_time": end.isoformat(),
        "event_types": list(endpoint.event_types),
        "endpoint_create_time": endpoint.create_time.isoformat(),
    }
    rows = await connection.fetch(
        COUNT_EVENTS, endpoint.key.tenant_id, start, end, endpoint.key.endpoint_id, endpoint.create_time, COUNT_MAX
    )
    count = sum(row["count"] for row in rows if matches_any(endpoint.event_types, row["type"]))
    position = {"time": start.isoformat(), "ordinal": -1, "event_id": ""}
    return Planned(arguments, position, count)


COUNT_LETTERS = """
SELECT count(*) FROM (
    SELECT FROM dead_letter d
    JOIN decision x ON x.tenant_id = d.tenant_id AND x.endpoint_id = d.endpoint_id AND x.seq = d.seq
    WHERE d.tenant_id = $1 AND d.endpoint_id = $2 AND d.seq <= $3 AND d.state = 'OPEN'
      AND ($4::text IS NULL OR d.type = $4) AND ($5::text IS NULL OR d.ordering_key = $5)
      AND ($6::text IS NULL OR x.reason = $6) AND d.time >= $7 AND d.time < $8
    LIMIT $9
) d"""


async def _plan_letters(connection: Connection, endpoint: Endpoint, wanted: Wanted, bounds: asyncpg.Record) -> Planned:
    said = dict(wanted.letters or {})
    start = wanted.start_time or endpoint.create_time
    end = wanted.end_time or bounds["now"]
    arguments = {**said, "start_time": start.isoformat(), "end_time": end.isoformat(), "end_seq": bounds["letter_seq"]}
    count = await connection.fetchval(
        COUNT_LETTERS,
        endpoint.key.tenant_id,
        endpoint.key.endpoint_id,
        bounds["letter_seq"],
        said.get("event_type"),
        said.get("ordering_key"),
        said.get("reason"),
        start,
        end,
        COUNT_MAX,
    )
    return Planned(arguments, {"seq": 0}, count)
