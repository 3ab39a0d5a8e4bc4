"""Deliveries read back: outbox rows with their computed state.

Lists go down the primary key (endpoint, sequence, time), the only order that can be read in bounded steps: highest
sequence first within an endpoint, the endpoint created last first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from dispatcher.errors import NotFoundError
from dispatcher.model import Attempt, DecisionKind, DeliveryState, EndpointKey, Outcome
from dispatcher.store import endpoints, filters, tenants
from dispatcher.store.changes import endpoint_name
from dispatcher.store.database import Database
from dispatcher.store.filters import Filter, bad_filter
from dispatcher.store.paging import SCAN_ROWS_MAX, Page, PageRequest, Position, cut, decode_token, encode_token
from dispatcher.store.windows import TIME_MAX, TIME_MIN, Window, any_window, bounded_window

FILTER_RULES = {
    "event": filters.TEXT,
    "event_type": filters.TEXT,
    "ordering_key": filters.TEXT,
    "last_status_code": filters.STATUS_CODE,
    "state": filters.Rule(filters.Kind.WORD, words=frozenset(state.value for state in DeliveryState)),
    "create_time": filters.TIME_RANGE,
}
STATE_SCAN_ROWS_MAX = 1000
"""Rows one page may compute the state of where the filter asks for a state: each costs several index probes."""
EVENT_TIMES_MAX = 100
"""Publications of one event id (after the deduplication window, or replayed) that a list looks at, newest first."""
SEQ_MAX = 2**63 - 1
ENDPOINT_ID_MAX = UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class RecordedDecision:
    """Why a delivery ended without success, who decided so and when."""

    kind: DecisionKind
    reason: str
    actor: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one endpoint. `deliver_time` is when the first successful attempt ended. `replay_of` is
    the sequence repeated (0: none), None for a delivery of a publish."""

    key: EndpointKey
    endpoint_name: str
    seq: int
    event_id: str
    type: str
    ordering_key: str | None
    state: DeliveryState
    revision: int
    attempt_count: int
    last_attempt: Attempt | None
    create_time: datetime
    deliver_time: datetime | None
    decision: RecordedDecision | None
    replay_of: int | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose deliveries: one endpoint's (`endpoint_id`), or all of the tenant's. Tombstones' history is readable."""

    tenant_id: UUID
    endpoint_id: UUID | None


async def resolve_scope(db: Database, tenant: str, endpoint: str | None) -> Scope:
    """Names to ids; `endpoint` None is `endpoints/-`. Errors: NotFoundError."""
    if endpoint is None:
        return Scope((await tenants.get(db, tenant)).tenant_id, None)
    key = (await endpoints.get(db, tenant, endpoint, deleted_too=True)).key
    return Scope(key.tenant_id, key.endpoint_id)


# Parameters of all three scans: $1 tenant, $2 endpoint (of the scope or of the position), $3 and $4 sequence and time
# of the position, $5 and $6 whole days, $7 rows to scan, $15 whether all endpoints are wanted, $16 event times.
SCAN_ENDPOINT = """
    SELECT tenant_id, endpoint_id, seq, time, event_id, type, ordering_key, revision, replay_of
    FROM outbox
    WHERE tenant_id = $1 AND endpoint_id = $2 AND (seq, time) < ($3, $4) AND time >= $5 AND time < $6
      AND NOT $15::boolean AND $16::timestamptz[] IS NULL
    ORDER BY seq DESC, time DESC LIMIT $7"""
SCAN_TENANT = """
    SELECT tenant_id, endpoint_id, seq, time, event_id, type, ordering_key, revision, replay_of
    FROM outbox
    WHERE tenant_id = $1 AND (endpoint_id, seq, time) < ($2, $3, $4) AND time >= $5 AND time < $6
      AND $15::boolean AND $16::timestamptz[] IS NULL
    ORDER BY endpoint_id DESC, seq DESC, time DESC LIMIT $7"""
# publish() gives an event and its rows the same time, whose block range index leads to them: a few blocks per time.
SCAN_EVENT = """
    SELECT tenant_id, endpoint_id, seq, time, event_id, type, ordering_key, revision, replay_of
    FROM outbox
    WHERE tenant_id = $1 AND time = ANY ($16::timestamptz[]) AND event_id = $14
      AND (endpoint_id, seq, time) < ($2, $3, $4) AND ($15::boolean OR endpoint_id = $2)
      AND time >= $5 AND time < $6
    ORDER BY endpoint_id DESC, seq DESC, time DESC LIMIT $7"""
# The laterals are one index probe each per row and partition since the row's day; an attempt's clock may lag an hour.
DETAILS = """
WITH scanned AS MATERIALIZED ({scan}
), picked AS MATERIALIZED (
    SELECT * FROM scanned
    WHERE time >= $8 AND time < $9 AND ($10::text IS NULL OR type = $10)
      AND ($11::text IS NULL OR ordering_key = $11) AND ($14::text IS NULL OR event_id = $14)
    ORDER BY endpoint_id DESC, seq DESC, time DESC LIMIT $12
), detailed AS (
    SELECT p.*, e.name AS endpoint_name, a.attempt_count, a.deliver_time, l.*,
           d.kind, d.reason, d.actor, d.time AS decide_time,
           CASE WHEN a.deliver_time IS NOT NULL THEN 'DELIVERED' WHEN d.kind IS NULL THEN 'PENDING'
                WHEN d.kind = 2 THEN 'SKIPPED' ELSE 'DEAD_LETTERED' END AS state
    FROM picked p
    JOIN endpoint e ON e.tenant_id = p.tenant_id AND e.endpoint_id = p.endpoint_id
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE a.outcome <> 11) AS attempt_count,
               min(a.time + a.duration_us * interval '1 microsecond') FILTER (WHERE a.outcome = 1) AS deliver_time
        FROM attempt a
        WHERE a.tenant_id = p.tenant_id AND a.endpoint_id = p.endpoint_id AND a.seq = p.seq
          AND a.event_id = p.event_id AND a.time >= p.time - interval '1 hour'
    ) a
    LEFT JOIN LATERAL (
        SELECT a.epoch, a.number, a.time AS start_time, a.duration_us, a.outcome, a.status_code, a.error,
               a.response_excerpt, a.url_index
        FROM attempt a
        WHERE a.tenant_id = p.tenant_id AND a.endpoint_id = p.endpoint_id AND a.seq = p.seq
          AND a.event_id = p.event_id AND a.time >= p.time - interval '1 hour'
        ORDER BY a.epoch DESC, a.number DESC, a.time DESC LIMIT 1
    ) l ON true
    LEFT JOIN decision d
      ON d.tenant_id = p.tenant_id AND d.endpoint_id = p.endpoint_id AND d.seq = p.seq AND d.event_id = p.event_id
)
SELECT n.scan_count, z.scan_endpoint_id, z.scan_seq, z.scan_time, r.*
FROM (SELECT count(*) AS scan_count FROM scanned) n
LEFT JOIN (
    SELECT endpoint_id AS scan_endpoint_id, seq AS scan_seq, time AS scan_time FROM scanned
    ORDER BY endpoint_id, seq, time LIMIT 1
) z ON true
LEFT JOIN (
    SELECT * FROM detailed
    WHERE ($13::text IS NULL OR state = $13) AND ($17::smallint IS NULL OR status_code = $17)
) r ON true
ORDER BY r.endpoint_id DESC, r.seq DESC, r.time DESC"""
LIST_OF_ENDPOINT = DETAILS.replace("{scan}", SCAN_ENDPOINT)
LIST_OF_TENANT = DETAILS.replace("{scan}", SCAN_TENANT)
LIST_OF_EVENT = DETAILS.replace("{scan}", SCAN_EVENT)


async def get(db: Database, tenant: str, endpoint: str, seq: int) -> Delivery:
    """One delivery. Errors: NotFoundError (tenant, endpoint or delivery)."""
    scope = await resolve_scope(db, tenant, endpoint)
    assert scope.endpoint_id is not None  # noqa: S101 -- an endpoint was named
    delivery = await find(db, EndpointKey(scope.tenant_id, scope.endpoint_id), seq)
    if delivery is None:
        raise delivery_not_found(tenant, endpoint, seq)
    return delivery


def delivery_not_found(tenant: str, endpoint: str, seq: int) -> NotFoundError:
    return NotFoundError("webhooks.dispatcher/Delivery", f"{endpoint_name(tenant, endpoint)}/deliveries/{seq}")


async def find(db: Database, key: EndpointKey, seq: int) -> Delivery | None:
    """The delivery of this sequence, None where there is none (any more)."""
    whole = Window(TIME_MIN, TIME_MAX)
    arguments = _arguments(key.tenant_id, (key.endpoint_id, seq, TIME_MAX), whole, Filter(), 1, 1)
    rows = await _list(db, Scope(key.tenant_id, key.endpoint_id), None, arguments)
    found = [_delivery(row) for row in rows if row["seq"] == seq]
    return found[0] if found else None


async def list_page(db: Database, tenant: str, endpoint: str | None, request: PageRequest) -> Page[Delivery]:
    """Deliveries of an endpoint, or of all (`endpoint` None: the filter must name an event or at most 24 h).

    Filter: `event`, `event_type`, `ordering_key`, `state`, `last_status_code`, `create_time`. A page may be short or
    empty and still have a next one. Errors: NotFoundError, InvalidRequestError.
    """
    query = ("deliveries", tenant, endpoint or "-", request.filter)
    wanted = filters.parse(request.filter, FILTER_RULES)
    event_id = event_id_of(wanted, tenant)
    window = _window(wanted, is_narrow=endpoint is not None or event_id is not None)
    after = decode_token(query, request.token, (UUID, int, datetime))
    scope = await resolve_scope(db, tenant, endpoint)
    _, seq, time = after or (None, SEQ_MAX, TIME_MAX)
    # A token says where to go on, never in which endpoint of a narrower parent.
    position = (scope.endpoint_id or (after[0] if after else ENDPOINT_ID_MAX), seq, time)
    scan_rows = STATE_SCAN_ROWS_MAX if _needs_details(wanted) else SCAN_ROWS_MAX
    arguments = _arguments(scope.tenant_id, position, window, wanted, scan_rows, request.size + 1)
    code = wanted.text("last_status_code")
    rows = await _list(db, scope, event_id, arguments, None if code is None else int(code))
    found, end = cut(rows, request.size, scan_rows, ("endpoint_id", "seq", "time"))
    return Page(tuple(map(_delivery, found)), encode_token(query, end) if end else "")


def event_id_of(wanted: Filter, tenant: str) -> str | None:
    """The id of the event that a filter names, None where it names none. Errors: InvalidRequestError."""
    name = wanted.text("event")
    if name is None:
        return None
    prefix = f"tenants/{tenant}/events/"
    if not name.startswith(prefix):
        raise bad_filter(f"compares 'event' with something that does not begin with {prefix}")
    return name.removeprefix(prefix)


def _window(wanted: Filter, *, is_narrow: bool) -> Window:
    window = any_window(wanted, "create_time") if is_narrow else bounded_window(wanted, "create_time")
    if window is None:
        raise bad_filter(
            "must name an 'event' or a 'create_time' range of at most 24 h where the parent is endpoints/-"
        )
    return window


def _needs_details(wanted: Filter) -> bool:
    """Whether rows are known to be wanted only once what became of them is."""
    return wanted.text("state") is not None or wanted.text("last_status_code") is not None


def _arguments(
    tenant_id: UUID, position: Position, window: Window, wanted: Filter, scan_rows: int, rows: int
) -> tuple[Any, ...]:
    """$1 to $13. Where a state is asked for, rows are picked before it is known, so as many as are scanned."""
    return (
        tenant_id,
        *position,
        window.first_day,
        window.last_day_end,
        scan_rows,
        window.start,
        window.end,
        wanted.text("event_type"),
        wanted.text("ordering_key"),
        scan_rows if _needs_details(wanted) else rows,
        wanted.text("state"),
    )


SELECT_EVENT_TIMES = """
SELECT time FROM event WHERE tenant_id = $1 AND event_id = $2 ORDER BY time DESC LIMIT $3"""


async def event_times(db: Database, tenant_id: UUID, event_id: str) -> list[datetime]:
    """When an event was published, the newest time first: its deliveries have the same times."""
    return [row["time"] for row in await db.fetch(SELECT_EVENT_TIMES, tenant_id, event_id, EVENT_TIMES_MAX)]


async def _list(
    db: Database, scope: Scope, event_id: str | None, arguments: tuple[Any, ...], status_code: int | None = None
) -> list[asyncpg.Record]:
    """$14 event, $15 whether all endpoints are wanted, $16 times of the event, $17 the last attempt's status."""
    is_all = scope.endpoint_id is None
    if event_id is None:
        return await db.fetch(
            LIST_OF_TENANT if is_all else LIST_OF_ENDPOINT, *arguments, None, is_all, None, status_code
        )
    times = await event_times(db, scope.tenant_id, event_id)
    return await db.fetch(LIST_OF_EVENT, *arguments, event_id, is_all, times, status_code)


def _delivery(row: asyncpg.Record) -> Delivery:
    key = EndpointKey(row["tenant_id"], row["endpoint_id"])
    return Delivery(
        key=key,
        endpoint_name=row["endpoint_name"],
        seq=row["seq"],
        event_id=row["event_id"],
        type=row["type"],
        ordering_key=row["ordering_key"],
        state=DeliveryState(row["state"]),
        revision=row["revision"],
        attempt_count=row["attempt_count"],
        last_attempt=None if row["number"] is None else attempt_from_row(row),
        create_time=row["time"],
        deliver_time=row["deliver_time"],
        replay_of=row["replay_of"],
        decision=None
        if row["kind"] is None
        else RecordedDecision(DecisionKind(row["kind"]), row["reason"], row["actor"], row["decide_time"]),
    )


def attempt_from_row(row: asyncpg.Record) -> Attempt:
    """An attempt from a row with the columns of `attempt`, its time named `start_time`."""
    return Attempt(
        key=EndpointKey(row["tenant_id"], row["endpoint_id"]),
        seq=row["seq"],
        event_id=row["event_id"],
        epoch=row["epoch"],
        number=row["number"],
        start_time=row["start_time"],
        duration_s=row["duration_us"] / 1e6,
        outcome=Outcome(row["outcome"]),
        status_code=row["status_code"],
        error=row["error"],
        response_excerpt=row["response_excerpt"],
        url_index=row["url_index"] or 0,
    )
