"""A tenant's endpoints walked over: counted by state, their backlogs summed, the worst named."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from dispatcher.errors import DatabaseBusyError, NotFoundError
from dispatcher.model import Attempt, EndpointKey, Outcome
from dispatcher.store import attempts, endpoint_status, partitions, tenant_status
from dispatcher.store.database import Database
from dispatcher.store.partitions import Partition
from dispatcher.store.recent import StatisticsLimits
from dispatcher.store.tenant_status import TenantStatus
from tests.integration.store.test_recent import locked
from tests.support.backlog import add_endpoint, add_rows, add_tenant, attempt_at
from tests.support.postgres import TestDatabase

LIMITS = StatisticsLimits(timeout_s=10.0, worst_max=2)
MINUTE = timedelta(minutes=1)


@pytest.fixture
async def tenant_id(connection: asyncpg.Connection) -> UUID:
    return await add_tenant(connection)


@pytest.fixture
async def now(connection: asyncpg.Connection) -> datetime:
    return await connection.fetchval("SELECT now()")


async def status_of(
    db: Database, limits: StatisticsLimits = LIMITS, *, name: str = "acme", within_s: float = 60.0
) -> TenantStatus:
    return await tenant_status.read(db, name, limits, asyncio.get_running_loop().time() + within_s)


async def behind(
    connection: asyncpg.Connection, tenant_id: UUID, count: int, since: datetime, **said: Any
) -> EndpointKey:
    """An endpoint to which so many deliveries are pending since then."""
    key = await add_endpoint(connection, tenant_id, cursor_time=since, **said)
    if count:
        await add_rows(connection, key, count, time=since)
    return key


async def park(connection: asyncpg.Connection, key: EndpointKey, seq: int, since: datetime) -> None:
    await connection.execute(
        """
        INSERT INTO parked (tenant_id, endpoint_id, seq, time, event_id, event_time, type, ordering_mode, revision,
                            data_bytes, attempts, due_time)
        VALUES ($1, $2, $3, $4, 'e', $4, 't', 'UNORDERED', 1, 2, 1, now())""",
        key.tenant_id,
        key.endpoint_id,
        seq,
        since,
    )


async def try_by_proxy(db: Database, key: EndpointKey, seq: int, at: datetime, event_id: str = "e") -> None:
    attempt = Attempt(key, seq, event_id, 1, 0, at, 0.1, Outcome.EGRESS_PROXY_FAILED, None, "x", None)
    await attempts.append(db, [attempt])


async def halt(connection: asyncpg.Connection, key: EndpointKey, seq: int, since: datetime) -> None:
    await connection.execute(
        "INSERT INTO halt VALUES ($1, $2, $3, 'e', $4, 't', NULL, 'ORDERED', 'ATTEMPTS_EXHAUSTED', $4)",
        key.tenant_id,
        key.endpoint_id,
        seq,
        since,
    )


async def fail(connection: asyncpg.Connection, key: EndpointKey, since: datetime) -> None:
    await connection.execute(
        "INSERT INTO endpoint_health VALUES ($1, $2, 1, $3, 0, '[]', NULL, NULL, now())",
        key.tenant_id,
        key.endpoint_id,
        since,
    )


async def names(connection: asyncpg.Connection, *keys: EndpointKey) -> list[str]:
    return [await connection.fetchval("SELECT name FROM endpoint WHERE endpoint_id = $1", k.endpoint_id) for k in keys]


async def test_endpoints_are_counted_by_what_they_are(
    db: Database, connection: asyncpg.Connection, tenant_id: UUID, now: datetime
) -> None:
    halted = await behind(connection, tenant_id, 1, now)
    await halt(connection, halted, 1, now)
    await halt(connection, halted, 2, now)
    failing, well = [await behind(connection, tenant_id, 0, now) for _ in range(2)]
    await fail(connection, failing, now)
    for state in ("PAUSED", "DISABLED", "DISABLED"):
        await behind(connection, tenant_id, 0, now, state=state)
    await behind(connection, tenant_id, 1, now, delete_time=now)
    stranger = await behind(connection, await add_tenant(connection, "other"), 5, now)
    await fail(connection, stranger, now)
    walk = (await status_of(db)).walk
    assert (walk.total, walk.active, walk.paused, walk.disabled) == (6, 3, 1, 2)
    assert (walk.halted, walk.failing, walk.backlog, walk.is_partial) == (1, 1, 1, False)
    assert well


async def test_backlogs_are_summed_and_the_worst_named(
    db: Database, connection: asyncpg.Connection, tenant_id: UUID, now: datetime
) -> None:
    large = await behind(connection, tenant_id, 7, now - MINUTE)
    old = await behind(connection, tenant_id, 2, now - 60 * MINUTE)
    paused = await behind(connection, tenant_id, 5, now - 3 * MINUTE, state="PAUSED")
    halted = await behind(connection, tenant_id, 1, now - 2 * MINUTE)
    await halt(connection, halted, 1, now)
    await behind(connection, tenant_id, 0, now)
    status = await status_of(db)
    assert (status.walk.backlog, status.walk.held) == (15, 6)
    assert [s.name for s in status.largest] == await names(connection, large, paused)
    assert [s.name for s in status.oldest] == await names(connection, old, paused)
    assert status.oldest_time == now - 60 * MINUTE
    assert [s.is_held for s in status.oldest] == [False, True]


async def test_parked_deliveries_are_backlog_though_the_cursor_has_passed_them(
    db: Database, connection: asyncpg.Connection, tenant_id: UUID, now: datetime
) -> None:
    key = await add_endpoint(connection, tenant_id, cursor_seq=9, cursor_time=now - MINUTE)
    for seq in (3, 5):
        await park(connection, key, seq, now - 9 * MINUTE)
    await add_rows(connection, key, 2, first_seq=10, time=now - MINUTE)
    status = await status_of(db)
    assert (status.walk.backlog, status.oldest_time) == (4, now - 9 * MINUTE)


async def test_a_parked_delivery_that_is_halted_is_due_to_nobody(
    db: Database, connection: asyncpg.Connection, tenant_id: UUID, now: datetime
) -> None:
    key = await add_endpoint(connection, tenant_id, cursor_seq=9, cursor_time=now - MINUTE)
    (name,) = await names(connection, key)
    for seq in (3, 5):
        await park(connection, key, seq, now - MINUTE)
    await connection.execute("UPDATE parked SET due_time = $1::timestamptz + (seq - 3) * interval '30 s'", now)
    assert (await endpoint_status.read(db, "acme", name)).troubles.parked_due == now
    await halt(connection, key, 3, now)
    assert (await endpoint_status.read(db, "acme", name)).troubles.parked_due == now + MINUTE


async def test_a_parked_delivery_that_only_the_egress_proxy_has_failed_has_failed_and_one_that_waits_untried_has_not(
    db: Database, connection: asyncpg.Connection, tenant_id: UUID, now: datetime
) -> None:
    key = await add_endpoint(connection, tenant_id, cursor_seq=9, cursor_time=now - MINUTE)
    (name,) = await names(connection, key)
    for seq in (3, 4, 5):
        await park(connection, key, seq, now - MINUTE)
    await connection.execute("UPDATE parked SET attempts = 0, due_time = $1", now - MINUTE)
    troubles = (await endpoint_status.read(db, "acme", name)).troubles
    assert (troubles.lowest_parked_failed, troubles.parked_due) == (None, None)
    soon = now + 5 * MINUTE
    await connection.execute("UPDATE parked SET due_time = $1 WHERE seq = 5", soon)
    troubles = (await endpoint_status.read(db, "acme", name)).troubles
    assert (troubles.lowest_parked_failed, troubles.parked_due) == (5, soon)
    await try_by_proxy(db, key, 4, now)
    troubles = (await endpoint_status.read(db, "acme", name)).troubles
    assert (troubles.lowest_parked_failed, troubles.parked_due) == (4, now - MINUTE)


async def test_what_is_delivered_above_the_cursor_is_taken_off_and_counted_as_recent(
    db: Database, connection: asyncpg.Connection, tenant_id: UUID, now: datetime
) -> None:
    done = await behind(connection, tenant_id, 3, now - MINUTE)
    rows = [await add_rows(connection, done, 1, first_seq=seq, time=now - MINUTE) for seq in (4, 5)]
    busy = await behind(connection, tenant_id, 4, now - MINUTE)
    first = await connection.fetch("SELECT * FROM outbox WHERE seq < 4 AND endpoint_id = $1", done.endpoint_id)
    whole = [attempt_at(r[0]) for r in rows] + [
        attempt_at(rows[0][0], seq=row["seq"], event_id=row["event_id"]) for row in first
    ]
    failed = {"outcome": Outcome.HTTP_ERROR, "status_code": 500}
    one = await connection.fetchrow("SELECT * FROM outbox WHERE seq = 1 AND endpoint_id = $1", busy.endpoint_id)
    await attempts.append(
        db, [*whole, attempt_at(rows[0][0], key=busy, seq=1, event_id=one["event_id"], duration_s=3.0, **failed)]
    )
    status = await status_of(db)
    assert status.walk.backlog == 4
    assert [s.name for s in status.largest] == await names(connection, busy)
    assert status.statistics is not None
    assert (status.statistics.attempt_count, status.statistics.succeeded_count) == (6, 5)
    assert (status.statistics.endpoint_count, status.statistics.truncated) == (2, False)
    assert status.statistics.durations is not None
    assert (status.statistics.durations.p50_s, status.statistics.durations.p99_s) == (0.01, 3.0)


def figures(status: TenantStatus) -> tuple[object, ...]:
    walk = status.walk
    return (
        (walk.total, walk.active, walk.paused, walk.halted, walk.failing, walk.backlog, walk.held, walk.at_work),
        [(s.name, s.backlog) for s in status.largest],
        [(s.name, s.oldest_time) for s in status.oldest],
        status.statistics and (status.statistics.endpoint_count, status.statistics.truncated),
    )


async def test_pages_come_to_what_one_would(
    db: Database, connection: asyncpg.Connection, tenant_id: UUID, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(1, 7):
        key = await behind(connection, tenant_id, n % 4, now - n * MINUTE, state="PAUSED" if n == 5 else "ACTIVE")
        if n % 2:
            await halt(connection, key, 1, now)
            await fail(connection, key, now)
    whole = figures(await status_of(db))
    for size in (1, 2, 5, 6):
        monkeypatch.setattr(tenant_status, "PAGE_ENDPOINTS", size)
        assert figures(await status_of(db)) == whole
    assert whole[0][:3] == (6, 5, 1)  # type: ignore[index]


async def test_when_the_time_is_over_the_status_is_of_what_was_read(
    db: Database, connection: asyncpg.Connection, tenant_id: UUID, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in (1, 2):
        await behind(connection, tenant_id, n, now - n * MINUTE)
    monkeypatch.setattr(tenant_status, "PAGE_ENDPOINTS", 1)
    add = tenant_status._add

    def add_slowly(*arguments: Any) -> None:
        add(*arguments)
        time.sleep(1.1)  # the page takes that long

    monkeypatch.setattr(tenant_status, "_add", add_slowly)
    status = await status_of(db, StatisticsLimits(timeout_s=1.0))
    assert (status.walk.total, status.walk.is_partial, status.time_to_drain_s) == (1, True, None)
    assert status.statistics is not None
    assert status.statistics.truncated


async def test_of_a_large_tenant_an_old_backlog_is_looked_for_where_something_is_wrong(
    db: Database, connection: asyncpg.Connection, tenant_id: UUID, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    days_ago = now - timedelta(days=3)
    for table in ("outbox", "event"):
        await partitions._create_and_attach(connection, Partition(table, days_ago.astimezone(UTC).date()))
    _quiet, paused, halted, failing, parked, busy, at_proxy = [
        await behind(connection, tenant_id, 2, days_ago, state=state)
        for state in ("ACTIVE", "PAUSED", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE")
    ]
    await halt(connection, halted, 1, now)
    await fail(connection, failing, now)
    await park(connection, parked, 0, days_ago)
    await add_rows(connection, busy, 1, first_seq=3, time=now)
    await try_by_proxy(db, at_proxy, 1, now)
    whole = await status_of(db)
    assert (whole.walk.total, whole.walk.backlog) == (7, 16)
    monkeypatch.setattr(tenant_status, "EXACT_ENDPOINTS_MAX", 5)
    status = await status_of(db)
    assert (status.walk.total, status.walk.backlog, status.walk.is_partial) == (7, 14, False)
    assert status.oldest_time == whole.oldest_time == days_ago
    found = {standing.key: standing.backlog for standing in status.walk.standings}
    assert found == {paused: 2, halted: 2, failing: 2, parked: 3, busy: 3, at_proxy: 2}
    await connection.execute("UPDATE tenant SET state = 'PAUSED'")
    assert (await status_of(db)).walk.backlog == 16


async def test_more_endpoints_than_are_sampled_make_the_statistics_those_of_the_most_behind(
    db: Database, connection: asyncpg.Connection, tenant_id: UUID, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in (1, 5, 3):
        key = await behind(connection, tenant_id, 0, now - MINUTE)
        await attempts.append(db, [attempt_at(r) for r in await add_rows(connection, key, n)][:1])
    monkeypatch.setattr(tenant_status, "SAMPLED_ENDPOINTS_MAX", 1)
    status = await status_of(db)
    assert status.walk.at_work == 3
    assert status.statistics is not None
    assert (status.statistics.endpoint_count, status.statistics.truncated) == (1, True)
    assert status.time_to_drain_s is None


async def test_a_database_that_does_not_answer_in_time_is_busy_or_leaves_out_the_statistics(
    database: TestDatabase, db: Database, connection: asyncpg.Connection, tenant_id: UUID, now: datetime
) -> None:
    await behind(connection, tenant_id, 2, now)
    quick = StatisticsLimits(timeout_s=0.2)
    async with locked(database, "endpoint"):
        with pytest.raises(DatabaseBusyError):
            await status_of(db, quick)
    async with locked(database, "attempt"):
        status = await status_of(db, quick)
        assert (status.walk.backlog, status.statistics, status.time_to_drain_s) == (2, None, None)


async def test_all_of_it_ends_by_its_deadline_whatever_one_statement_may_take(
    database: TestDatabase, db: Database, connection: asyncpg.Connection, tenant_id: UUID, now: datetime
) -> None:
    await behind(connection, tenant_id, 2, now)
    begun = time.monotonic()
    for table in ("tenant", "endpoint"):
        async with locked(database, table):
            with pytest.raises(DatabaseBusyError):
                await status_of(db, within_s=0.3)
    async with locked(database, "attempt"):
        status = await status_of(db, within_s=0.6)
    assert (status.walk.backlog, status.walk.is_partial, status.statistics) == (2, False, None)
    assert time.monotonic() - begun < db.options.lock_timeout_s
    with pytest.raises(DatabaseBusyError):
        await status_of(db, within_s=tenant_status.PAGE_MARGIN_S)


async def test_an_unknown_tenant_has_no_status_and_an_empty_one_has(db: Database, tenant_id: UUID) -> None:
    with pytest.raises(NotFoundError):
        await status_of(db, name="none")
    empty = await status_of(db)
    assert (empty.walk.total, empty.walk.backlog, empty.time_to_drain_s) == (0, 0, 0.0)
    assert empty.statistics is not None
    assert empty.statistics.endpoint_count == 0
    assert tenant_id
