"""Attempts are facts: anyone may append them, in batches, without a fence. A success row is the acknowledgement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dispatcher.model import Attempt
from dispatcher.store import forms
from dispatcher.store.database import Database
from dispatcher.store.fence import RAISE_SYNCHRONOUS_COMMIT
from dispatcher.store.forms import by_tenant

COLUMNS = (
    "tenant_id",
    "endpoint_id",
    "seq",
    "epoch",
    "number",
    "time",
    "event_id",
    "duration_us",
    "outcome",
    "status_code",
    "error",
    "response_excerpt",
    "url_index",
)


async def append(db: Database, attempts: Sequence[Attempt]) -> None:
    """Write a batch with COPY, all or nothing, durably. A batch of unknown outcome goes to `append_again`.

    Durably, though a lost attempt only means a duplicate: whoever was told that it is on record may move a cursor over
    it, and a server that crashed in between would not have it.
    """
    if not attempts:
        return
    async with db.transaction() as connection:
        await connection.execute(RAISE_SYNCHRONOUS_COMMIT)
        await connection.copy_records_to_table(
            "attempt", records=[_record(attempt) for attempt in attempts], columns=COLUMNS
        )


# A clock that is wrong by more than a day would point outside all partitions: such a fact is kept under the nearest
# possible time.
APPEND_AGAIN = by_tenant(
    """
INSERT INTO attempt (tenant_id, endpoint_id, seq, epoch, number, time, event_id, duration_us, outcome, status_code,
                     error, response_excerpt, url_index)
SELECT a.tenant_id, a.endpoint_id, a.seq, a.epoch, a.number,
       greatest(least(a.time, now() + interval '1 day'), now() - interval '1 day'), a.event_id, a.duration_us,
       a.outcome, a.status_code, a.error, a.response_excerpt, a.url_index
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::integer[], $6::timestamptz[], $7::text[],
            $8::bigint[], $9::smallint[], $10::smallint[], $11::text[], $12::bytea[], $13::smallint[])
     a(tenant_id, endpoint_id, seq, epoch, number, time, event_id, duration_us, outcome, status_code, error,
       response_excerpt, url_index)
ON CONFLICT DO NOTHING"""
)


async def append_again(db: Database, attempts: Sequence[Attempt]) -> None:
    """Write attempts some of which may be there already."""
    if not attempts:
        return
    async with db.transaction() as connection:
        await connection.execute(RAISE_SYNCHRONOUS_COMMIT)
        await forms.execute(connection, APPEND_AGAIN, [_record(attempt) for attempt in attempts])


def _record(attempt: Attempt) -> tuple[Any, ...]:
    tenant_id, endpoint_id = attempt.key
    return (
        tenant_id,
        endpoint_id,
        attempt.seq,
        attempt.epoch,
        attempt.number,
        attempt.start_time,
        attempt.event_id,
        round(attempt.duration_s * 1_000_000),
        attempt.outcome,
        attempt.status_code,
        storable_text(attempt.error),
        attempt.response_excerpt,
        attempt.url_index or None,
    )


def storable_text(text: str | None) -> str | None:
    """What PostgreSQL's text can hold: no NUL, no lone surrogates. An error message may quote a hostile peer."""
    if text is None:
        return None
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
