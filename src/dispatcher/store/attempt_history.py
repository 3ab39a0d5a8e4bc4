"""Attempts read back, down the primary key (endpoint, sequence, epoch, number, time): a delivery's newest first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from dispatcher.model import Attempt, EndpointKey, Outcome
from dispatcher.store import filters
from dispatcher.store.database import Database
from dispatcher.store.deliveries import (
    ENDPOINT_ID_MAX,
    SEQ_MAX,
    Scope,
    attempt_from_row,
    delivery_not_found,
    event_id_of,
    event_times,
    find,
    resolve_scope,
)
from dispatcher.store.filters import Filter, Operator, bad_filter
from dispatcher.store.paging import SCAN_ROWS_MAX, Page, PageRequest, Position, cut, decode_token, encode_token
from dispatcher.store.windows import TIME_MAX, Window, any_window, bounded_window

FILTER_RULES = {
    "outcome": filters.Rule(
        filters.Kind.WORD,
        frozenset({Operator.EQUALS, Operator.DIFFERS}),
        frozenset(outcome.name for outcome in Outcome),
    ),
    "status_code": filters.STATUS_CODE,
    "event": filters.TEXT,
    "event_type": filters.TEXT,
    "start_time": filters.TIME_RANGE,
}
TYPE_SCAN_ROWS_MAX = 1000
"""Attempts one page looks at where the filter names a type: each costs an index probe of its delivery."""
NUMBER_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ListedAttempt:
    """An attempt and the name of its endpoint within the tenant."""

    endpoint_name: str
    attempt: Attempt


# $1 tenant, $2 endpoint (of the scope or of the position), $3 to $6 the rest of the position, $7 lowest sequence,
# $8 and $9 whole days, $10 rows to scan.
SCAN_ENDPOINT = """
    SELECT tenant_id, endpoint_id, seq, epoch, number, time, event_id, duration_us, outcome, status_code, error,
           response_excerpt, url_index
    FROM attempt
    WHERE tenant_id = $1 AND endpoint_id = $2 AND (seq, epoch, number, time) < ($3, $4, $5, $6) AND seq >= $7
      AND time >= $8 AND time < $9
    ORDER BY seq DESC, epoch DESC, number DESC, time DESC LIMIT $10"""
SCAN_TENANT = """
    SELECT tenant_id, endpoint_id, seq, epoch, number, time, event_id, duration_us, outcome, status_code, error,
           response_excerpt, url_index
    FROM attempt
    WHERE tenant_id = $1 AND (endpoint_id, seq, epoch, number, time) < ($2, $3, $4, $5, $6) AND seq >= $7
      AND time >= $8 AND time < $9
    ORDER BY endpoint_id DESC, seq DESC, epoch DESC, number DESC, time DESC LIMIT $10"""
# By the deliveries of one event, which its publication times lead to ($19); $20: of all endpoints.
SCAN_EVENT = """
    SELECT a.tenant_id, a.endpoint_id, a.seq, a.epoch, a.number, a.time, a.event_id, a.duration_us, a.outcome,
           a.status_code, a.error, a.response_excerpt, a.url_index
    FROM outbox o
    CROSS JOIN LATERAL (
        SELECT * FROM attempt a
        WHERE a.tenant_id = o.tenant_id AND a.endpoint_id = o.endpoint_id AND a.seq = o.seq AND a.event_id = o.event_id
          AND (a.endpoint_id, a.seq, a.epoch, a.number, a.time) < ($2, $3, $4, $5, $6) AND a.seq >= $7
          AND a.time >= o.time - interval '1 hour' AND a.time >= $8 AND a.time < $9
        ORDER BY a.epoch DESC, a.number DESC, a.time DESC LIMIT $10
    ) a
    WHERE o.tenant_id = $1 AND o.time = ANY ($19::timestamptz[]) AND o.event_id = $17
      AND ($20::boolean OR o.endpoint_id = $2)
    ORDER BY a.endpoint_id DESC, a.seq DESC, a.epoch DESC, a.number DESC, a.time DESC LIMIT $10"""
LIST = """
WITH scanned AS MATERIALIZED ({scan}
)
SELECT n.scan_count, z.*, p.*
FROM (SELECT count(*) AS scan_count FROM scanned) n
LEFT JOIN (
    SELECT endpoint_id AS scan_endpoint_id, seq AS scan_seq, epoch AS scan_epoch, number AS scan_number,
           time AS scan_start_time
    FROM scanned ORDER BY endpoint_id, seq, epoch, number, time LIMIT 1
) z ON true
LEFT JOIN (
    SELECT s.tenant_id, s.endpoint_id, e.name AS endpoint_name, s.seq, s.epoch, s.number, s.time AS start_time,
           s.event_id, s.duration_us, s.outcome, s.status_code, s.error, s.response_excerpt,
           s.url_index
    FROM scanned s JOIN endpoint e ON e.tenant_id = s.tenant_id AND e.endpoint_id = s.endpoint_id
    WHERE s.time >= $11 AND s.time < $12 AND ($13::smallint IS NULL OR s.outcome = $13)
      AND ($14::smallint IS NULL OR s.outcome <> $14) AND ($16::smallint IS NULL OR s.status_code = $16)
      AND ($17::text IS NULL OR s.event_id = $17) AND ($18::text IS NULL OR EXISTS (
          SELECT FROM outbox o
          WHERE o.tenant_id = s.tenant_id AND o.endpoint_id = s.endpoint_id AND o.seq = s.seq
            AND o.event_id = s.event_id AND o.type = $18))
    ORDER BY s.endpoint_id DESC, s.seq DESC, s.epoch DESC, s.number DESC, s.time DESC LIMIT $15
) p ON true
ORDER BY p.endpoint_id DESC, p.seq DESC, p.epoch DESC, p.number DESC, p.start_time DESC"""
LIST_OF_ENDPOINT = LIST.replace("{scan}", SCAN_ENDPOINT)
LIST_OF_TENANT = LIST.replace("{scan}", SCAN_TENANT)
LIST_OF_EVENT = LIST.replace("{scan}", SCAN_EVENT)
# Failures have an index of their own, so that few among many successes are found at once.
ONLY_FAILED = ("AND seq >= $7", "AND seq >= $7 AND outcome <> 1")
FAILED_OF_ENDPOINT = LIST.replace("{scan}", SCAN_ENDPOINT.replace(*ONLY_FAILED))
FAILED_OF_TENANT = LIST.replace("{scan}", SCAN_TENANT.replace(*ONLY_FAILED))


async def list_page(
    db: Database, tenant: str, endpoint: str | None, seq: int | None, request: PageRequest
) -> Page[ListedAttempt]:
    """Attempts of one delivery, of an endpoint (`seq` None), or of a tenant (`endpoint` None, too: then the filter must
    name an `event` or hold a `start_time` range of at most 24 h).

    Filter: `outcome`, `status_code`, `event`, `event_type`, `start_time`. A page may be short or empty and still
    have a next one. Errors: NotFoundError, InvalidRequestError.
    """
    query = ("attempts", tenant, endpoint or "-", "-" if seq is None else str(seq), request.filter)
    wanted = filters.parse(request.filter, FILTER_RULES)
    event_id = event_id_of(wanted, tenant)
    is_narrow = endpoint is not None or event_id is not None
    window = any_window(wanted, "start_time") if is_narrow else bounded_window(wanted, "start_time")
    if window is None:
        raise bad_filter(
            "must name an 'event' or a 'start_time' range of at most 24 h where the parent is endpoints/-/deliveries/-"
        )
    after = decode_token(query, request.token, (UUID, int, int, int, datetime))
    scope = await resolve_scope(db, tenant, endpoint)
    await _check_delivery(db, scope, tenant, endpoint, seq)
    scan_rows = SCAN_ROWS_MAX if wanted.text("event_type") is None else TYPE_SCAN_ROWS_MAX
    arguments = (
        *_arguments(scope, seq, after, window, wanted, scan_rows),
        request.size + 1,
        _status_code(wanted),
        event_id,
        wanted.text("event_type"),
    )
    rows = await _list(db, scope, wanted, event_id, arguments)
    found, end = cut(rows, request.size, scan_rows, ("endpoint_id", "seq", "epoch", "number", "start_time"))
    items = tuple(ListedAttempt(row["endpoint_name"], attempt_from_row(row)) for row in found)
    return Page(items, encode_token(query, end) if end else "")


async def _list(
    db: Database, scope: Scope, wanted: Filter, event_id: str | None, arguments: tuple[Any, ...]
) -> list[asyncpg.Record]:
    if event_id is None:
        return await db.fetch(_statement(scope, wanted), *arguments)
    times = await event_times(db, scope.tenant_id, event_id)
    return await db.fetch(LIST_OF_EVENT, *arguments, times, scope.endpoint_id is None)


async def _check_delivery(db: Database, scope: Scope, tenant: str, endpoint: str | None, seq: int | None) -> None:
    if seq is None or endpoint is None or scope.endpoint_id is None:
        return
    if await find(db, EndpointKey(scope.tenant_id, scope.endpoint_id), seq) is None:
        raise delivery_not_found(tenant, endpoint, seq)


def _arguments(
    scope: Scope, seq: int | None, after: Position | None, window: Window, wanted: Filter, scan_rows: int
) -> tuple[Any, ...]:
    """$1 to $14. The first page of one delivery starts just above its highest attempt."""
    highest = SEQ_MAX if seq is None else seq
    endpoint_id, *position = after or (ENDPOINT_ID_MAX, highest, SEQ_MAX, NUMBER_MAX, TIME_MAX)
    return (
        scope.tenant_id,
        scope.endpoint_id or endpoint_id,
        *position,
        0 if seq is None else seq,
        window.first_day,
        window.last_day_end,
        scan_rows,
        window.start,
        window.end,
        _outcome(wanted, Operator.EQUALS),
        _outcome(wanted, Operator.DIFFERS),
    )


def _statement(scope: Scope, wanted: Filter) -> str:
    """By the failures' index where only failures can match."""
    equal, differs, code = wanted.text("outcome"), wanted.text("outcome", Operator.DIFFERS), _status_code(wanted)
    success = Outcome.SUCCEEDED.name
    only_failed = (
        differs == success or (equal is not None and equal != success) or (code is not None and not 200 <= code < 300)
    )
    if scope.endpoint_id is None:
        return FAILED_OF_TENANT if only_failed else LIST_OF_TENANT
    return FAILED_OF_ENDPOINT if only_failed else LIST_OF_ENDPOINT


def _status_code(wanted: Filter) -> int | None:
    code = wanted.text("status_code")
    return None if code is None else int(code)


def _outcome(wanted: Filter, operator: Operator) -> int | None:
    name = wanted.text("outcome", operator)
    return None if name is None else Outcome[name].value
