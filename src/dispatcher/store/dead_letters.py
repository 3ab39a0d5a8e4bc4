"""Dead letters read back, sent again, discarded. They hold all that a webhook is made of, and outlive the event.

Attributes, source and subject are not sent and so not kept.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from dispatcher.errors import NotFoundError, PreconditionError
from dispatcher.model import DecisionKind, EndpointKey, Outcome
from dispatcher.store import appending, filters
from dispatcher.store.appending import EndpointGoneError
from dispatcher.store.changes import change, endpoint_name
from dispatcher.store.database import Connection, Database, columns
from dispatcher.store.deliveries import ENDPOINT_ID_MAX, SEQ_MAX, RecordedDecision, event_id_of, resolve_scope
from dispatcher.store.filters import Filter, Operator
from dispatcher.store.paging import SCAN_ROWS_MAX, Page, PageRequest, cut, decode_token, encode_token
from dispatcher.store.replay_sources import letter_copy
from dispatcher.store.replays import close_redriven
from dispatcher.store.windows import TIME_MAX, TIME_MIN


class LetterState(enum.StrEnum):
    """What became of a dead letter. DELIVERED is computed: a success came in after all."""

    OPEN = "OPEN"
    REDRIVEN = "REDRIVEN"
    DISCARDED = "DISCARDED"
    DELIVERED = "DELIVERED"


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter. `data` is None where it was not asked for, or was deleted with a discard."""

    key: EndpointKey
    endpoint_name: str
    seq: int
    event_id: str
    type: str
    ordering_key: str | None
    content_type: str
    data: bytes | None
    state: LetterState
    decision: RecordedDecision
    attempts: int
    last_outcome: Outcome | None
    last_status_code: int | None
    last_error: str | None
    create_time: datetime
    close_time: datetime | None
    close_reason: str | None
    close_actor: str | None
    redrive_seq: int | None


LETTER_RULES = {
    "event_type": filters.TEXT,
    "ordering_key": filters.TEXT,
    "reason": filters.TEXT,
    "create_time": filters.TIME_RANGE,
}
"""What RedriveDeadLetters may ask for."""
FILTER_RULES = {
    **LETTER_RULES,
    "event": filters.TEXT,
    "state": filters.Rule(filters.Kind.WORD, words=frozenset(state.value for state in LetterState)),
}

# A success that comes late began before the decision at the earliest by an attempt's timeout; a day is far more.
LIST_LETTERS = """
WITH scanned AS MATERIALIZED (
    SELECT d.* FROM dead_letter d
    WHERE d.tenant_id = $1 AND (d.endpoint_id, d.seq) < ($2, $3) AND ($4::boolean OR d.endpoint_id = $2)
    ORDER BY d.endpoint_id DESC, d.seq DESC LIMIT $5
), detailed AS (
    SELECT s.*, e.name AS endpoint_name, x.kind, x.reason, x.actor, x.time AS decide_time, NULL::bytea AS data,
           CASE WHEN EXISTS (
               SELECT FROM attempt a
               WHERE a.tenant_id = s.tenant_id AND a.endpoint_id = s.endpoint_id AND a.seq = s.seq
                 AND a.event_id = s.event_id AND a.outcome = 1 AND a.time >= s.time - interval '1 day'
           ) THEN 'DELIVERED' ELSE s.state END AS letter_state
    FROM scanned s
    JOIN endpoint e ON e.tenant_id = s.tenant_id AND e.endpoint_id = s.endpoint_id
    JOIN decision x ON x.tenant_id = s.tenant_id AND x.endpoint_id = s.endpoint_id AND x.seq = s.seq
    WHERE ($6::text IS NULL OR s.type = $6) AND ($7::text IS NULL OR s.ordering_key = $7)
      AND ($8::text IS NULL OR x.reason = $8) AND ($9::text IS NULL OR s.event_id = $9)
      AND s.time >= $10 AND s.time < $11
)
SELECT n.scan_count, z.scan_endpoint_id, z.scan_seq, r.*
FROM (SELECT count(*) AS scan_count FROM scanned) n
LEFT JOIN (
    SELECT endpoint_id AS scan_endpoint_id, seq AS scan_seq FROM scanned ORDER BY endpoint_id, seq LIMIT 1
) z ON true
LEFT JOIN (
    SELECT * FROM detailed WHERE $12::text IS NULL OR letter_state = $12
    ORDER BY endpoint_id DESC, seq DESC LIMIT $13
) r ON true
ORDER BY r.endpoint_id DESC, r.seq DESC"""


async def list_page(db: Database, tenant: str, endpoint: str | None, request: PageRequest) -> Page[StoredLetter]:
    """Dead letters of an endpoint, or of all (`endpoint` None), without payloads. A page may be short or empty and
    still have a next one. Errors: NotFoundError, InvalidRequestError."""
    query = ("dead-letters", tenant, endpoint or "-", request.filter)
    wanted = filters.parse(request.filter, FILTER_RULES)
    event_id = event_id_of(wanted, tenant)
    after = decode_token(query, request.token, (UUID, int))
    scope = await resolve_scope(db, tenant, endpoint)
    position = (scope.endpoint_id or (after[0] if after else ENDPOINT_ID_MAX), after[1] if after else SEQ_MAX)
    rows = await db.fetch(
        LIST_LETTERS,
        scope.tenant_id,
        *position,
        scope.endpoint_id is None,
        SCAN_ROWS_MAX,
        *letter_arguments(wanted),
        event_id,
        *_times(wanted),
        wanted.text("state"),
        request.size + 1,
    )
    found, end = cut(rows, request.size, SCAN_ROWS_MAX, ("endpoint_id", "seq"))
    return Page(tuple(map(_letter, found)), encode_token(query, end) if end else "")


def letter_arguments(wanted: Filter) -> tuple[str | None, str | None, str | None]:
    """Type, ordering key and reason of a filter."""
    return wanted.text("event_type"), wanted.text("ordering_key"), wanted.text("reason")


def _times(wanted: Filter) -> tuple[datetime, datetime]:
    start, end = wanted.time("create_time", Operator.FROM), wanted.time("create_time", Operator.BEFORE)
    return start or TIME_MIN, end or TIME_MAX


SELECT_LETTER = """
SELECT d.*, e.name AS endpoint_name, x.kind, x.reason, x.actor, x.time AS decide_time,
       coalesce(d.own_data, p.data) AS data,
       CASE WHEN EXISTS (
           SELECT FROM attempt a
           WHERE a.tenant_id = d.tenant_id AND a.endpoint_id = d.endpoint_id AND a.seq = d.seq
             AND a.event_id = d.event_id AND a.outcome = 1 AND a.time >= d.time - interval '1 day'
       ) THEN 'DELIVERED' ELSE d.state END AS letter_state
FROM dead_letter d
JOIN endpoint e ON e.tenant_id = d.tenant_id AND e.endpoint_id = d.endpoint_id
JOIN decision x ON x.tenant_id = d.tenant_id AND x.endpoint_id = d.endpoint_id AND x.seq = d.seq
LEFT JOIN dead_letter_payload p ON p.tenant_id = d.tenant_id AND p.event_id = d.event_id
WHERE d.tenant_id = $1 AND d.endpoint_id = $2 AND d.seq = $3"""


async def get(db: Database, tenant: str, endpoint: str, seq: int) -> StoredLetter:
    """One dead letter with its payload. Errors: NotFoundError."""
    key = await _key(db, tenant, endpoint)
    row = await db.fetchrow(SELECT_LETTER, key.tenant_id, key.endpoint_id, seq)
    if row is None:
        raise _not_found(tenant, endpoint, seq)
    return _letter(row)


async def _key(db: Database, tenant: str, endpoint: str) -> EndpointKey:
    scope = await resolve_scope(db, tenant, endpoint)
    assert scope.endpoint_id is not None  # noqa: S101 -- an endpoint was named
    return EndpointKey(scope.tenant_id, scope.endpoint_id)


def letter_name(tenant: str, endpoint: str, seq: int) -> str:
    """The full resource name of a dead letter."""
    return f"{endpoint_name(tenant, endpoint)}/deadLetters/{seq}"


def _not_found(tenant: str, endpoint: str, seq: int) -> NotFoundError:
    return NotFoundError("webhooks.dispatcher/DeadLetter", letter_name(tenant, endpoint, seq))


LOCK_LETTER = SELECT_LETTER + " FOR UPDATE OF d"
SELECT_COPY = """
SELECT d.seq, d.event_id, d.time AS published_time, d.type, d.ordering_key, d.content_type,
       coalesce(d.own_data, p.data) AS data
FROM dead_letter d JOIN dead_letter_payload p ON p.tenant_id = d.tenant_id AND p.event_id = d.event_id
WHERE d.tenant_id = $1 AND d.endpoint_id = $2 AND d.seq = $3"""


async def redrive(db: Database, tenant: str, endpoint: str, seq: int, actor: str) -> tuple[EndpointKey, int]:
    """Append an OPEN dead letter as a new delivery, once; returns its sequence, the first one's where it was asked for
    before. Lock order: endpoint, dead letter.

    Errors: NotFoundError, PreconditionError `DEAD_LETTER_CLOSED` or `ENDPOINT_DELETED`.
    """
    key = await _key(db, tenant, endpoint)
    async with change(db) as connection:
        try:
            revision = await appending.lock(connection, key)
        except EndpointGoneError as error:
            resource = endpoint_name(tenant, endpoint)
            raise PreconditionError(
                f"{resource} has been deleted", reason="ENDPOINT_DELETED", subject=resource
            ) from error
        letter = await _lock(connection, key, tenant, endpoint, seq)
        if letter.state is LetterState.REDRIVEN and letter.redrive_seq is not None:
            return key, letter.redrive_seq
        _refuse_closed(letter, tenant)
        row = await connection.fetchrow(SELECT_COPY, key.tenant_id, key.endpoint_id, seq)
        if row is None:
            raise _not_found(tenant, endpoint, seq)
        copies = [letter_copy(row)]
        first = await appending.append(connection, key, revision, copies)
        await close_redriven(connection, key, copies, first, actor)
    return key, first


DISCARD = """
UPDATE dead_letter SET state = 'DISCARDED', close_time = clock_timestamp(), close_reason = $4, close_actor = $5,
                       own_data = NULL
WHERE tenant_id = $1 AND endpoint_id = $2 AND seq = $3"""
# The payload is shared by all that gave up on the event. The lock on its row serialises discards that happen together.
LOCK_PAYLOADS = """
SELECT FROM dead_letter_payload
WHERE (tenant_id, event_id) IN (SELECT * FROM unnest($1::uuid[], $2::text[]))
ORDER BY tenant_id, event_id FOR UPDATE"""
DELETE_PAYLOADS = """
DELETE FROM dead_letter_payload p USING unnest($1::uuid[], $2::text[]) u(tenant_id, event_id)
WHERE p.tenant_id = u.tenant_id AND p.event_id = u.event_id AND NOT EXISTS (
    SELECT FROM dead_letter d WHERE d.tenant_id = p.tenant_id AND d.event_id = p.event_id AND d.state <> 'DISCARDED')"""


async def _delete_payloads(connection: Connection, events: Sequence[tuple[UUID, str]]) -> None:
    """Delete the payloads that no letter needs any more.

    They are shared by all that gave up on the event. The lock makes those wait who do the same, or write another
    letter of it; the deletion is a statement of its own, to see what they have done.
    """
    named = columns(events, 2)
    await connection.execute(LOCK_PAYLOADS, *named)
    await connection.execute(DELETE_PAYLOADS, *named)


async def discard(db: Database, tenant: str, endpoint: str, seq: int, reason: str, actor: str) -> StoredLetter:
    """Close an OPEN dead letter for good; its payload goes unless another letter needs it. Once discarded, asking again
    changes nothing. Errors: NotFoundError, PreconditionError `DEAD_LETTER_CLOSED`."""
    key = await _key(db, tenant, endpoint)
    async with change(db) as connection:
        letter = await _lock(connection, key, tenant, endpoint, seq)
        if letter.state is not LetterState.DISCARDED:
            _refuse_closed(letter, tenant)
            await connection.execute(DISCARD, key.tenant_id, key.endpoint_id, seq, reason, actor)
            await _delete_payloads(connection, [(key.tenant_id, letter.event_id)])
    return await get(db, tenant, endpoint, seq)


async def _lock(connection: Connection, key: EndpointKey, tenant: str, endpoint: str, seq: int) -> StoredLetter:
    row = await connection.fetchrow(LOCK_LETTER, key.tenant_id, key.endpoint_id, seq)
    if row is None:
        raise _not_found(tenant, endpoint, seq)
    return _letter(row)


def _refuse_closed(letter: StoredLetter, tenant: str) -> None:
    if letter.state is not LetterState.OPEN:
        resource = letter_name(tenant, letter.endpoint_name, letter.seq)
        raise PreconditionError(f"{resource} is {letter.state.value}", reason="DEAD_LETTER_CLOSED", subject=resource)


REMOVE_CLOSED = """
DELETE FROM dead_letter WHERE (tenant_id, endpoint_id, seq) IN (
    SELECT tenant_id, endpoint_id, seq FROM dead_letter
    WHERE state <> 'OPEN' AND close_time < clock_timestamp() - make_interval(secs => $1)
    ORDER BY close_time LIMIT $2)
RETURNING tenant_id, event_id"""


async def remove_closed(db: Database, kept_s: float, limit: int) -> int:
    """Forget letters closed so long ago, up to `limit`, with the payloads that no other needs; returns how many."""
    async with db.transaction() as connection:
        rows = await connection.fetch(REMOVE_CLOSED, float(kept_s), limit)
        if rows:
            await _delete_payloads(connection, [(row["tenant_id"], row["event_id"]) for row in rows])
    return len(rows)


def _letter(row: asyncpg.Record) -> StoredLetter:
    return StoredLetter(
        key=EndpointKey(row["tenant_id"], row["endpoint_id"]),
        endpoint_name=row["endpoint_name"],
        seq=row["seq"],
        event_id=row["event_id"],
        type=row["type"],
        ordering_key=row["ordering_key"],
        content_type=row["content_type"],
        data=row["data"],
        state=LetterState(row["letter_state"]),
        decision=RecordedDecision(DecisionKind(row["kind"]), row["reason"], row["actor"], row["decide_time"]),
        attempts=row["attempts"],
        last_outcome=None if row["last_outcome"] is None else Outcome(row["last_outcome"]),
        last_status_code=row["last_status_code"],
        last_error=row["last_error"],
        create_time=row["time"],
        close_time=row["close_time"],
        close_reason=row["close_reason"],
        close_actor=row["close_actor"],
        redrive_seq=row["redrive_seq"],
    )
