"""Partitions come and go beside open readers, and nothing unsettled goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest

from dispatcher.model import CommandKind, DecisionKind, EndpointKey, OrderingMode
from dispatcher.store import attempts, commands, leases, parked, partitions, upkeep
from dispatcher.store.database import Database
from dispatcher.store.parked import ParkRequest
from dispatcher.store.partitions import Partition
from dispatcher.store.upkeep import UpkeepReport, UpkeepSettings, run_round
from tests.support.backlog import add_endpoint, add_rows, add_tenant, attempt_at

SETTINGS = UpkeepSettings(retention_days=10, lock_wait_s=0.3)
INSERT_TIMEOUT_S = 2.0


@pytest.fixture
async def today(connection: asyncpg.Connection) -> date:
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return now.astimezone(UTC).date()


@pytest.fixture
async def old_day(connection: asyncpg.Connection, today: date) -> date:
    """A day past the retention with a partition of each table."""
    day = today - timedelta(days=20)
    await create_day(connection, day)
    return day


async def create_day(connection: asyncpg.Connection, day: date, *tables: str) -> None:
    for table in tables or partitions.EVENT_TABLES:
        assert await partitions._create_and_attach(connection, Partition(table, day))


async def names(connection: asyncpg.Connection) -> set[str]:
    return {partition.name for partition in await partitions.attached(connection)}


@asynccontextmanager
async def reader(db: Database, *tables: str) -> AsyncIterator[asyncpg.Connection]:
    """What pg_dump does: one REPEATABLE READ transaction that has read the tables and stays open."""
    connection = await db.connect()
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            for table in tables or (*partitions.DAILY_TABLES, "dedup"):
                await connection.fetch(f"SELECT * FROM {table}")
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def publishing(db: Database, key: EndpointKey) -> AsyncIterator[None]:
    """Inserts into `event` and `outbox` all the while; each must be done at once, and one at least must be."""
    connection, done, stop = await db.connect(), 0, asyncio.Event()

    async def publish() -> None:
        nonlocal done
        while not stop.is_set() or done == 0:
            async with asyncio.timeout(INSERT_TIMEOUT_S):
                await add_rows(connection, key, 1, first_seq=1000 + done)
            done += 1

    task = asyncio.create_task(publish())
    try:
        yield
        stop.set()
        await task
        assert done > 0
    finally:
        task.cancel()
        await asyncio.wait([task])
        await connection.close()


async def test_partitions_are_created_beside_an_open_reader_while_publishing_goes_on(
    db: Database, connection: asyncpg.Connection, today: date
) -> None:
    key = await add_endpoint(connection, await add_tenant(connection), 7)
    async with reader(db), publishing(db, key):
        report = await asyncio.wait_for(run_round(db, UpkeepSettings(days_ahead=9)), 10.0)
    expected = [Partition(t, today + timedelta(days=n)).name for t in partitions.DAILY_TABLES for n in (8, 9)]
    assert report.created == expected
    assert set(expected) <= await names(connection)


SELECT_INDEXES = """
SELECT regexp_replace(pg_get_indexdef(i.indexrelid), 'INDEX .* ON .* USING', ''), x.inhparent::regclass::text
FROM pg_index i JOIN pg_inherits x ON x.inhrelid = i.indexrelid
WHERE i.indrelid = $1::regclass ORDER BY 2"""


async def test_a_created_partition_is_like_those_made_the_ordinary_way(
    db: Database, connection: asyncpg.Connection, old_day: date
) -> None:
    for table in partitions.EVENT_TABLES:
        await connection.execute(
            f"CREATE TABLE ordinary PARTITION OF {table} FOR VALUES FROM ('2001-01-01') TO ('2001-01-02')"
        )
        ours = await connection.fetch(SELECT_INDEXES, Partition(table, old_day).name)
        assert ours
        assert ours == await connection.fetch(SELECT_INDEXES, "ordinary")
        await connection.execute("DROP TABLE ordinary")


async def test_a_second_round_finds_nothing_to_do(db: Database) -> None:
    await run_round(db, SETTINGS)
    report = await run_round(db, SETTINGS)
    assert (report.created, report.dropped, report.kept, report.failed) == ([], [], [], [])


async def test_rounds_at_once_do_not_fail_each_other(
    db: Database, connection: asyncpg.Connection, old_day: date
) -> None:
    await asyncio.gather(*(run_round(db, UpkeepSettings(retention_days=10, days_ahead=12)) for _ in range(3)))
    await run_round(db, SETTINGS)
    left = await names(connection)
    assert not [name for name in left if f"{old_day:%Y%m%d}" in name]


async def test_a_settled_day_is_dropped_whole_and_its_sequence_is_not_forgotten(
    db: Database, connection: asyncpg.Connection, old_day: date
) -> None:
    """The cursor lags behind what is on record; it catches up before the rows go."""
    start = partitions.day_start(old_day)
    key = await add_endpoint(connection, await add_tenant(connection), 7, cursor_time=start)
    rows = await add_rows(connection, key, 5, time=start + timedelta(hours=3), step=timedelta(minutes=1))
    await insert_attempts(connection, [rows[0], rows[1], rows[3], rows[4]])
    await connection.execute(
        "INSERT INTO decision VALUES ($1, $2, 3, $3, $4, 'X', 'ann', now())",
        key.tenant_id,
        key.endpoint_id,
        DecisionKind.SKIP,
        rows[2].event_id,
    )
    report = await run_round(db, SETTINGS)
    assert sorted(report.dropped) == sorted(Partition(t, old_day).name for t in partitions.EVENT_TABLES)
    assert tuple(await connection.fetchrow("SELECT seq, time FROM cursor")) == (5, rows[4].time)
    assert await connection.fetchval("SELECT to_regclass($1)", Partition("outbox", old_day).name) is None


async def insert_attempts(connection: asyncpg.Connection, rows: list) -> None:
    await connection.copy_records_to_table(
        "attempt", records=[attempts._record(attempt_at(row)) for row in rows], columns=attempts.COLUMNS
    )


async def test_a_day_with_one_unsettled_row_is_kept_with_its_events_and_attempts(
    db: Database, connection: asyncpg.Connection, old_day: date, today: date
) -> None:
    later = old_day + timedelta(days=1)
    await create_day(connection, later)
    start = partitions.day_start(old_day)
    tenant_id = await add_tenant(connection)
    stuck = await add_endpoint(connection, tenant_id, 7, cursor_time=start)
    fine = await add_endpoint(connection, tenant_id, 8, cursor_time=start)
    await insert_attempts(connection, (await add_rows(connection, stuck, 3, time=start))[1:])
    await insert_attempts(connection, await add_rows(connection, fine, 3, time=start))
    report = await run_round(db, SETTINGS)
    assert report.kept == [Partition("outbox", old_day).name]
    assert report.blocked == {"undelivered": 1, "in_use": 0, "error": 0}
    # The later day holds nothing and may go; its events and attempts stay behind the older rows.
    assert report.dropped == [Partition("outbox", later).name]
    assert {Partition(t, d).name for t in ("event", "attempt") for d in (old_day, later)} <= await names(connection)
    assert dict(await connection.fetch("SELECT endpoint_id, seq FROM cursor")) == {
        stuck.endpoint_id: 0,
        fine.endpoint_id: 3,
    }


@pytest.mark.parametrize("cursor_seq", [0, 1])
async def test_a_day_with_a_parked_delivery_is_kept_and_its_owner_asked(
    db: Database, connection: asyncpg.Connection, old_day: date, cursor_seq: int
) -> None:
    """The cursor passes over what is parked, or is about to; that does not make it delivered."""
    start = partitions.day_start(old_day)
    tenant_id = await add_tenant(connection)
    key = await add_endpoint(connection, tenant_id, 7, cursor_seq=cursor_seq, cursor_time=start)
    (row,) = await add_rows(connection, key, 1, time=start)
    (lease,) = await leases.acquire(db, uuid4(), 1, 60.0, [7])
    await parked.park(db, {7: lease.epoch}, [ParkRequest(row, OrderingMode.UNORDERED, 60.0)])
    report = await run_round(db, SETTINGS)
    assert report.kept == [Partition("outbox", old_day).name]
    (asked,) = await commands.open_commands(db, [7])
    assert (asked.kind, asked.key) == (CommandKind.EXPIRE_BACKLOG, key)
    assert await connection.fetchval("SELECT seq FROM cursor") == 1
    await parked.tidy(db, [(key, row.seq)], [])
    assert Partition("outbox", old_day).name in (await run_round(db, SETTINGS)).dropped


async def test_a_gap_is_never_taken_for_settled(db: Database, connection: asyncpg.Connection, old_day: date) -> None:
    start = partitions.day_start(old_day)
    key = await add_endpoint(connection, await add_tenant(connection), 7, cursor_time=start)
    await insert_attempts(connection, await add_rows(connection, key, 2, first_seq=2, time=start))
    report = await run_round(db, SETTINGS)
    assert report.kept == [Partition("outbox", old_day).name]


async def test_a_day_within_the_retention_is_not_touched(
    db: Database, connection: asyncpg.Connection, today: date
) -> None:
    for n in (9, 10, 11):
        await create_day(connection, today - timedelta(days=n))
    report = await run_round(db, SETTINGS)
    dropped = [
        Partition("outbox", today - timedelta(days=11)).name,
        Partition("event", today - timedelta(days=11)).name,
    ]
    # The attempts of a day stay one more: their time is their sender's clock.
    assert sorted(report.dropped) == sorted(dropped)


async def test_dropping_waits_for_an_open_reader_while_publishing_goes_on_and_is_completed_later(
    db: Database, connection: asyncpg.Connection, old_day: date
) -> None:
    key = await add_endpoint(connection, await add_tenant(connection), 7)
    name = Partition("outbox", old_day).name
    async with reader(db) as dump, publishing(db, key):
        for _ in range(2):  # the second round finds the first one's interrupted work
            report = await asyncio.wait_for(run_round(db, SETTINGS), 20.0)
            assert report.dropped == []
            assert name in report.failed
            assert report.blocked == {"undelivered": 0, "in_use": len(set(report.failed)), "error": 0}
        await dump.fetch("SELECT * FROM outbox")
    report = await run_round(db, SETTINGS)
    assert sorted(report.dropped) == sorted(Partition(t, old_day).name for t in partitions.EVENT_TABLES)
    assert await connection.fetchval("SELECT to_regclass($1)", name) is None


async def test_a_drop_that_is_refused_is_told_apart_from_one_that_waits_for_a_reader(
    db: Database, old_day: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object) -> None:
        raise asyncpg.InsufficientPrivilegeError("must be owner of table")

    monkeypatch.setattr(partitions, "detach", refused)
    report = await run_round(db, SETTINGS)
    assert report.blocked == {"undelivered": 0, "in_use": 0, "error": 1}


async def test_a_partition_that_someone_detached_to_keep_it_is_left_alone(
    db: Database, connection: asyncpg.Connection, old_day: date
) -> None:
    name = Partition("outbox", old_day).name
    await connection.execute(f"ALTER TABLE outbox DETACH PARTITION {name}")
    await run_round(db, SETTINGS)
    assert await connection.fetchval("SELECT to_regclass($1)", name) is not None


async def test_a_dedup_generation_goes_when_no_publish_looks_at_it(
    db: Database, connection: asyncpg.Connection
) -> None:
    window_s = await connection.fetchval("SELECT dedup_window_s FROM deployment")
    generation = int((await connection.fetchval("SELECT now()")).timestamp()) // window_s
    await partitions._create_and_attach(connection, Partition("dedup", generation - 5))
    report = await run_round(db, SETTINGS)
    assert report.dropped == [f"dedup_g{generation - 5}"]
    assert {f"dedup_g{generation + n}" for n in (-1, 0, 1, 2)} <= await names(connection)


async def test_the_loop_outlives_a_failing_round_and_stops_when_told(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = 0
    stop = asyncio.Event()

    async def failing_round(_db: Database, _settings: UpkeepSettings) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            stop.set()
        raise asyncpg.PostgresError("away")

    monkeypatch.setattr(upkeep, "run_round", failing_round)
    told = list[UpkeepReport]()
    await asyncio.wait_for(upkeep.run(db, UpkeepSettings(interval_s=0.01), stop, told.append), 5.0)
    assert (rounds, told) == (2, []), "it tells of what went through alone"


async def test_the_loop_tells_after_each_round_what_could_not_be_dropped(
    db: Database, connection: asyncpg.Connection, old_day: date
) -> None:
    key = await add_endpoint(connection, await add_tenant(connection), 7, cursor_time=partitions.day_start(old_day))
    await add_rows(connection, key, 1, time=partitions.day_start(old_day))
    told, stop = list[dict[str, int]](), asyncio.Event()

    def on_done(report: UpkeepReport) -> None:
        told.append(report.blocked)
        stop.set()

    await asyncio.wait_for(upkeep.run(db, UpkeepSettings(retention_days=10), stop, on_done), 10.0)
    assert told == [{"undelivered": 1, "in_use": 0, "error": 0}]
