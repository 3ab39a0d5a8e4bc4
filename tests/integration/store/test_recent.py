"""Recent attempts as statistics read them: from the end, so many and no more."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta

import asyncpg
import pytest

from dispatcher.errors import DatabaseBusyError
from dispatcher.model import EndpointKey, OutboxRow, Outcome
from dispatcher.store import attempts, recent
from dispatcher.store.database import Database
from dispatcher.store.recent import StatisticsLimits
from dispatcher.store.statistics import Sample
from tests.support.backlog import add_endpoint, add_rows, add_tenant, attempt_at
from tests.support.postgres import TestDatabase

LONG_AGO = timedelta(hours=1)
HALF_A_MINUTE = timedelta(seconds=30)
A_DAY = timedelta(days=1)
TEN = StatisticsLimits(window_s=300.0, attempts_max=10)


@pytest.fixture
async def key(connection: asyncpg.Connection) -> EndpointKey:
    return await add_endpoint(connection, await add_tenant(connection))


@pytest.fixture
async def now(connection: asyncpg.Connection) -> datetime:
    return await connection.fetchval("SELECT now()")


async def attempted(db: Database, rows: list[OutboxRow], start: datetime, **said: object) -> None:
    """One attempt of each, a second apart."""
    found = [attempt_at(row, start_time=start + timedelta(seconds=n), **said) for n, row in enumerate(rows)]
    await attempts.append(db, found)


async def sample_of(db: Database, key: EndpointKey, limits: StatisticsLimits = TEN) -> Sample:
    (found,) = await recent.read(db, [key], limits)
    return found


async def test_only_attempts_of_the_window_are_counted(
    db: Database, connection: asyncpg.Connection, key: EndpointKey, now: datetime
) -> None:
    rows = await add_rows(connection, key, 5, time=now - LONG_AGO)
    await attempted(db, rows[:2], now - LONG_AGO)
    await attempted(db, rows[2:3], now - HALF_A_MINUTE, outcome=Outcome.TIMEOUT, duration_s=2.5)
    await attempted(db, rows[2:4], now - HALF_A_MINUTE / 2, number=2)
    found = await sample_of(db, key)
    assert sorted((a.seq, a.duration_s, a.succeeded) for a in found.attempts) == [
        (3, 0.01, True),
        (3, 2.5, False),
        (4, 0.01, True),
    ]
    assert (found.span_s, found.truncated) == (pytest.approx(300.0), False)
    assert found.delivered == {3, 4}


async def test_what_the_egress_proxy_failed_is_no_attempt_at_the_receiver(
    db: Database, connection: asyncpg.Connection, key: EndpointKey, now: datetime
) -> None:
    rows = await add_rows(connection, key, 2, time=now - LONG_AGO)
    await attempted(db, rows[:1], now - HALF_A_MINUTE, outcome=Outcome.EGRESS_PROXY_FAILED, number=0)
    await attempted(db, rows, now - HALF_A_MINUTE / 2)
    found = await sample_of(db, key)
    assert [(a.seq, a.succeeded) for a in sorted(found.attempts, key=lambda a: a.seq)] == [(1, True), (2, True)]


async def test_of_more_than_may_be_read_the_latest_are_and_the_span_is_theirs(
    db: Database, connection: asyncpg.Connection, key: EndpointKey, now: datetime
) -> None:
    rows = await add_rows(connection, key, 25, time=now - HALF_A_MINUTE, step=timedelta(seconds=1))
    await attempted(db, rows, now - HALF_A_MINUTE)
    found = await sample_of(db, key)
    assert [a.seq for a in found.attempts] == list(range(25, 15, -1))
    assert found.truncated
    assert 15.0 <= found.span_s < 60.0, "since the start of the tenth from the end"
    assert found.committed == 10
    assert found.committed_span_s == pytest.approx(found.span_s, abs=1.0)


async def test_a_limit_reached_by_old_attempts_may_hide_retries_and_the_whole_window_is_counted(
    db: Database, connection: asyncpg.Connection, key: EndpointKey, now: datetime
) -> None:
    rows = await add_rows(connection, key, 20, time=now - LONG_AGO)
    await attempted(db, rows[:15], now - LONG_AGO)
    await attempted(db, rows[15:17], now - HALF_A_MINUTE)
    await attempted(db, rows[:1], now - HALF_A_MINUTE, number=2)
    found = await sample_of(db, key)
    assert [a.seq for a in found.attempts] == [17, 16], "the retry of 1 lies below the tenth from the end"
    assert (found.span_s, found.truncated) == (pytest.approx(300.0), True)
    assert (found.committed, found.committed_span_s) == (0, pytest.approx(300.0))


async def test_a_high_sequence_that_is_old_neither_lengthens_the_span_nor_hides_that_others_are_hidden(
    db: Database, connection: asyncpg.Connection, key: EndpointKey, now: datetime
) -> None:
    rows = await add_rows(connection, key, 25, time=now - LONG_AGO)
    await attempted(db, rows[24:], now - LONG_AGO)
    await attempted(db, rows[:24], now - HALF_A_MINUTE)
    found = await sample_of(db, key)
    assert [a.seq for a in found.attempts] == list(range(24, 15, -1))
    assert found.truncated
    assert found.span_s < 60.0, "since the start of the ninth from the end"


async def test_as_many_attempts_as_the_limit_are_all_of_them(
    db: Database, connection: asyncpg.Connection, key: EndpointKey, now: datetime
) -> None:
    await attempted(db, await add_rows(connection, key, 10, time=now - LONG_AGO), now - HALF_A_MINUTE)
    found = await sample_of(db, key)
    assert (len(found.attempts), found.span_s, found.truncated) == (10, pytest.approx(300.0), False)


async def test_payloads_are_those_of_the_deliveries_attempted_whenever_they_were_committed(
    db: Database, connection: asyncpg.Connection, key: EndpointKey, now: datetime
) -> None:
    for seq, size in enumerate((10, 20, 30, 40), 1):
        age = A_DAY if seq < 3 else timedelta(0)
        await add_rows(connection, key, 1, first_seq=seq, time=now - age, data=b"x" * size)
    rows = [row for row in await _rows(db, key) if row.seq in (2, 4)]
    await attempted(db, rows, now - HALF_A_MINUTE)
    assert sorted((await sample_of(db, key)).payload_bytes) == [20, 40]


async def _rows(db: Database, key: EndpointKey) -> list[OutboxRow]:
    found = await db.fetch("SELECT * FROM outbox WHERE endpoint_id = $1", key.endpoint_id)
    names = ("seq", "time", "event_id", "event_time", "type", "ordering_key", "revision", "data_bytes")
    return [OutboxRow(key, *(row[name] for name in names)) for row in found]


async def test_a_window_that_began_yesterday_has_both_days(
    db: Database, connection: asyncpg.Connection, key: EndpointKey, now: datetime
) -> None:
    rows = await add_rows(connection, key, 4, time=now - A_DAY)
    await attempted(db, rows[:2], now - A_DAY)
    await attempted(db, rows[2:], now - HALF_A_MINUTE)
    day = StatisticsLimits(window_s=A_DAY.total_seconds() + 3600, attempts_max=100)
    found = await sample_of(db, key, day)
    assert [a.seq for a in found.attempts] == [4, 3, 2, 1]
    assert found.committed == 4


async def test_endpoints_come_in_the_order_asked_with_or_without_anything_to_tell(
    db: Database, connection: asyncpg.Connection, key: EndpointKey, now: datetime
) -> None:
    quiet = await add_endpoint(connection, key.tenant_id, 8)
    other = await add_endpoint(connection, key.tenant_id, 9)
    await attempted(db, await add_rows(connection, other, 2), now - HALF_A_MINUTE)
    await attempted(db, await add_rows(connection, key, 3), now - HALF_A_MINUTE)
    found = await recent.read(db, [other, quiet, key], StatisticsLimits(attempts_max=300))
    assert [len(sample.attempts) for sample in found] == [2, 0, 3]
    assert [sample.committed for sample in found] == [2, 0, 3]
    assert [len(sample.payload_bytes) for sample in found] == [2, 0, 3]
    assert await recent.read(db, [], TEN) == []


async def test_many_endpoints_share_the_limit_down_to_a_least_share(
    db: Database, connection: asyncpg.Connection, key: EndpointKey, now: datetime
) -> None:
    keys = [key, *[await add_endpoint(connection, key.tenant_id, p) for p in (8, 9)]]
    for one in keys:
        await attempted(db, await add_rows(connection, one, 25), now - HALF_A_MINUTE)

    async def read_of_each(attempts_max: int) -> list[int]:
        return [len(s.attempts) for s in await recent.read(db, keys, StatisticsLimits(attempts_max=attempts_max))]

    assert await read_of_each(60) == [20] * 3
    assert await read_of_each(3) == [recent.ENDPOINT_ATTEMPTS_MIN] * 3


def locked(database: TestDatabase, table: str) -> AbstractAsyncContextManager[None]:
    """Nobody else reads the table meanwhile."""
    return database.holding(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")


async def test_a_database_that_takes_too_long_costs_the_statistics_and_no_more(
    database: TestDatabase, db: Database, key: EndpointKey
) -> None:
    limits = StatisticsLimits(timeout_s=0.1)
    async with locked(database, "attempt"):
        start = time.monotonic()
        with pytest.raises(DatabaseBusyError):
            await recent.read(db, [key], limits)
        assert await recent.of_endpoint(db, key, limits) is None
        assert time.monotonic() - start < db.options.lock_timeout_s
        assert db.availability.away_since is None, "it answers"
    found = await recent.of_endpoint(db, key, StatisticsLimits())
    assert found is not None
    assert found.attempt_count == 0
