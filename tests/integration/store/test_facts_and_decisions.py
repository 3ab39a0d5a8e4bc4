"""Attempts, decisions with their dead letters, skips and cursors."""

from __future__ import annotations

import uuid
from datetime import timedelta

import asyncpg
import pytest

from dispatcher.model import Cursor, DeadLetter, DecisionKind, EndpointKey, OutboxRow, Outcome
from dispatcher.store import attempts, cursors, decisions, leases
from dispatcher.store.database import Database
from dispatcher.store.fence import fenced
from tests.support.backlog import add_endpoint, add_rows, add_tenant, attempt_at, decision_on


@pytest.fixture
async def key(connection: asyncpg.Connection) -> EndpointKey:
    return await add_endpoint(connection, await add_tenant(connection), 7)


async def own(db: Database, *partitions: int) -> dict[int, int]:
    taken = await leases.acquire(db, uuid.uuid4(), len(partitions), 60.0, partitions)
    return {lease.partition: lease.epoch for lease in taken}


HOSTILE = {"outcome": Outcome.HTTP_ERROR, "status_code": 999, "error": "a\x00b\udcff", "response_excerpt": b"\x00\xff"}


@pytest.mark.parametrize("write", [attempts.append, attempts.append_again])
async def test_attempts_keep_every_byte_a_hostile_receiver_sends(
    db: Database, connection: asyncpg.Connection, key: EndpointKey, write
) -> None:
    (row,) = await add_rows(connection, key, 1)
    await write(db, [attempt_at(row, duration_s=1.5, **HOSTILE)])
    stored = await connection.fetchrow("SELECT * FROM attempt")
    assert (stored["error"], stored["response_excerpt"]) == ("a\ufffdb?", b"\x00\xff")
    assert (stored["duration_us"], stored["outcome"], stored["status_code"]) == (1_500_000, 2, 999)
    assert stored["time"] == attempt_at(row).start_time


async def test_attempts_are_written_again_without_repeating(
    db: Database, connection: asyncpg.Connection, key: EndpointKey
) -> None:
    first, second = await add_rows(connection, key, 2)
    await attempts.append(db, [attempt_at(first)])
    await attempts.append_again(db, [attempt_at(first), attempt_at(second)])
    assert await connection.fetchval("SELECT count(*) FROM attempt") == 2


async def test_an_attempt_under_an_impossible_clock_is_kept(
    db: Database, connection: asyncpg.Connection, key: EndpointKey
) -> None:
    (row,) = await add_rows(connection, key, 1)
    strange = [
        attempt_at(row, number=n, start_time=row.time + timedelta(days=days)) for n, days in ((1, -400), (2, 400))
    ]
    with pytest.raises(asyncpg.CheckViolationError):
        await attempts.append(db, strange)
    await attempts.append_again(db, strange)
    assert await connection.fetchval("SELECT count(*) FROM attempt") == 2


FLUSHED_PAST = "SELECT pg_current_wal_flush_lsn() > $1::text::pg_lsn"
INSERTED = "SELECT pg_current_wal_insert_lsn()::text"


@pytest.mark.parametrize("write", [attempts.append, attempts.append_again])
async def test_an_acknowledgement_is_durable_before_anyone_counts_on_it(
    db: Database, key: EndpointKey, connection, write
) -> None:
    """A cursor passes over what was flushed: a server that crashes in between must still have it."""
    database = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {database} SET synchronous_commit = off")
    (row,) = await add_rows(connection, key, 1)
    async with Database.open(db.options) as careless:
        assert await careless.fetchval("SHOW synchronous_commit") == "off"
        before = await connection.fetchval(INSERTED)
        await write(careless, [attempt_at(row)])
        assert await connection.fetchval(FLUSHED_PAST, before)
        assert await careless.fetchval("SHOW synchronous_commit") == "off"


def letter_for(row: OutboxRow) -> DeadLetter:
    return DeadLetter(
        row.key, row.seq, row.event_id, row.event_time, row.type, None, 12, Outcome.HTTP_ERROR, 500, "bad\x00"
    )


async def test_a_dead_letter_is_self_contained_and_its_payload_is_kept_once(
    db: Database, connection: asyncpg.Connection, key: EndpointKey
) -> None:
    other = await add_endpoint(connection, key.tenant_id, 8)
    (row,) = await add_rows(connection, key, 1, data=b"\x00body")
    twin = OutboxRow(other, 1, row.time, row.event_id, row.event_time, row.type, None, 1, 5)
    epochs = await own(db, 7, 8)
    for _ in range(2):  # a commit of unknown outcome is asked for again
        held = await decisions.commit(
            db, epochs, [decision_on(row), decision_on(twin)], [letter_for(row), letter_for(twin)]
        )
        assert held == {7, 8}
    assert await connection.fetchval("SELECT count(*) FROM decision WHERE kind = 1") == 2
    letters = await connection.fetch("SELECT content_type, attempts, last_error FROM dead_letter")
    assert [tuple(letter) for letter in letters] == [("application/json", 12, "bad\ufffd")] * 2
    assert [p["data"] for p in await connection.fetch("SELECT data FROM dead_letter_payload")] == [b"\x00body"]


async def test_decisions_are_durable_even_where_the_role_is_careless(
    db: Database, connection: asyncpg.Connection
) -> None:
    database = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {database} SET synchronous_commit = off")
    careless = await db.connect()
    try:
        assert await careless.fetchval("SHOW synchronous_commit") == "off"
    finally:
        await careless.close()
    async with Database.open(db.options) as reopened, fenced(reopened, {}) as (own_connection, _):
        assert await own_connection.fetchval("SHOW synchronous_commit") == "on"


async def test_a_range_is_skipped_in_batches_sparing_what_succeeded(
    db: Database, connection: asyncpg.Connection, key: EndpointKey
) -> None:
    rows = await add_rows(connection, key, 7)
    await attempts.append(db, [attempt_at(rows[2])])
    epoch = (await own(db, 7))[7]
    await cursors.advance(db, {7: epoch}, [Cursor(key, 1, rows[0].time)])
    through, skipped, calls = 0, 0, 0
    while through < 6:
        progress = await decisions.skip_range(db, epoch, key, through + 1, 6, 2, "ENDPOINT_DELETED", "ann")
        assert progress.held
        through, skipped, calls = progress.through_seq, skipped + progress.skipped, calls + 1
    assert (through, skipped, calls) == (6, 4, 3)
    written = await connection.fetch("SELECT seq, kind, reason, actor FROM decision ORDER BY seq")
    assert [tuple(d) for d in written] == [(s, DecisionKind.SKIP, "ENDPOINT_DELETED", "ann") for s in (2, 4, 5, 6)]


async def test_nothing_is_skipped_under_a_stale_epoch(
    db: Database, connection: asyncpg.Connection, key: EndpointKey
) -> None:
    await add_rows(connection, key, 2)
    epoch = (await own(db, 7))[7]
    progress = await decisions.skip_range(db, epoch - 1, key, 1, 2, 10, "ENDPOINT_DELETED", "ann")
    assert (progress.held, progress.through_seq, progress.skipped) == (False, 0, 0)
    assert await connection.fetchval("SELECT count(*) FROM decision") == 0


async def test_a_cursor_never_moves_back(db: Database, connection: asyncpg.Connection, key: EndpointKey) -> None:
    rows = await add_rows(connection, key, 3)
    epochs = await own(db, 7)
    for seq in (3, 2):
        await cursors.advance(db, epochs, [Cursor(key, seq, rows[seq - 1].time)])
    assert await connection.fetchval("SELECT seq FROM cursor") == 3
