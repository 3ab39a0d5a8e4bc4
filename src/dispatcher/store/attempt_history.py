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
    find,
    resolve_scope,
)
from dispatcher.store.filters import Filter, Operator, bad_filter
from dispatcher.store.paging import SCAN_ROWS_MAX, Page, PageRequest, Position, decode_token, encode_token
from dispatcher.store.windows import TIME_MAX, Window, any_window, bounded_window

FILTER_RULES = {
    "outcome": filters.Rule(
        filters.Kind.WORD,
        frozenset({Operator.EQUALS, Operator.DIFFERS}),
        frozenset(outcome.name for outcome in Outcome),
    ),
    "start_time": filters.TIME_RANGE,
}
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
           response_excerpt
    FROM attempt
    WHERE tenant_id = $1 AND endpoint_id = $2 AND (seq, epoch, number, time) < ($3, $4, $5, $6) AND seq >= $7
      AND time >= $8 AND time < $9
    ORDER BY seq DESC, epoch DESC, number DESC, time DESC LIMIT $10"""
SCAN_TENANT = """
    SELECT tenant_id, endpoint_id, seq, epoch, number, time, event_id, duration_us, outcome, status_code, error,
           response_excerpt
    FROM attempt
    WHERE tenant_id = $1 AND (endpoint_id, seq, epoch, number, time) < ($2, $3, $4, $5, $6) AND seq >= $7
      AND time >= $8 AND time < $9
    ORDER BY endpoint_id DESC, seq DESC, epoch DESC, number DESC, time DESC LIMIT $10"""
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
           s.event_id, s.duration_us, s.outcome, s.status_code, s.error, s.response_excerpt
    FROM scanned s JOIN endpoint e ON e.tenant_id = s.tenant_id AND e.endpoint_id = s.endpoint_id
    WHERE s.time >= $11 AND s.time < $12 AND ($13::smallint IS NULL OR s.outcome = $13)
      AND ($14::smallint IS NULL OR s.outcome <> $14)
    ORDER BY s.endpoint_id DESC, s.seq DESC, s.epoch DESC, s.number DESC, s.time DESC LIMIT $15
) p ON true
ORDER BY p.endpoint_id DESC, p.seq DESC, p.epoch DESC, p.number DESC, p.start_time DESC"""
LIST_OF_ENDPOINT = LIST.replace("{scan}", SCAN_ENDPOINT)
LIST_OF_TENANT = LIST.replace("{scan}", SCAN_TENANT)


async def list_page(
    db: Database, tenant: str, endpoint: str | None, seq: int | None, request: PageRequest
) -> Page[ListedAttempt]:
    """Attempts of one delivery, of an endpoint (`seq` None), or of a tenant (`endpoint` None, too: then the filter must
    hold a `start_time` range of at most 24 h).

    Filter: `outcome`, `start_time`. A page may be short or empty and still have a next one.
    Errors: NotFoundError, InvalidRequestError.
    """
    query = ("attempts", tenant, endpoint or "-", "-" if seq is None else str(seq), request.filter)
    wanted = filters.parse(request.filter, FILTER_RULES)
    window = any_window(wanted, "start_time") if endpoint is not None else bounded_window(wanted, "start_time")
    if window is None:
        raise bad_filter("must hold a 'start_time' range of at most 24 h where the parent is endpoints/-/deliveries/-")
    after = decode_token(query, request.token, (UUID, int, int, int, datetime))
    scope = await resolve_scope(db, tenant, endpoint)
    await _check_delivery(db, scope, tenant, endpoint, seq)
    rows = await db.fetch(
        LIST_OF_TENANT if scope.endpoint_id is None else LIST_OF_ENDPOINT,
        *_arguments(scope, seq, after, window, wanted),
        request.size + 1,
    )
    found = [row for row in rows if row["seq"] is not None]
    end: Position | None = None
    if len(found) > request.size:
        end = _position(found[request.size - 1], "")
    elif rows[0]["scan_count"] == SCAN_ROWS_MAX:
        end = _position(rows[0], "scan_")
    items = tuple(ListedAttempt(row["endpoint_name"], attempt_from_row(row)) for row in found[: request.size])
    return Page(items, encode_token(query, end) if end else "")


async def _check_delivery(db: Database, scope: Scope, tenant: str, endpoint: str | None, seq: int | None) -> None:
    if seq is None or endpoint is None or scope.endpoint_id is None:
        return
    if await find(db, EndpointKey(scope.tenant_id, scope.endpoint_id), seq) is None:
        raise delivery_not_found(tenant, endpoint, seq)


def _arguments(
    scope: Scope, seq: int | None, after: Position | None, window: Window, wanted: Filter
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
        SCAN_ROWS_MAX,
        window.start,
        window.end,
        _outcome(wanted, Operator.EQUALS),
        _outcome(wanted, Operator.DIFFERS),
    )


def _outcome(wanted: Filter, operator: Operator) -> int | None:
    name = wanted.text("outcome", operator)
    return None if name is None else Outcome[name].value


def _position(row: asyncpg.Record, prefix: str) -> Position:
    return tuple(row[f"{prefix}{column}"] for column in ("endpoint_id", "seq", "epoch", "number", "start_time"))
