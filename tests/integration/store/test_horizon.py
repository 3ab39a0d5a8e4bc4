"""What keeps VACUUM from its work is seen on a real server, by a role that may look at nothing of others'."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from dispatcher.embedded.postgres import EmbeddedPostgres
from dispatcher.store import horizon
from dispatcher.store.database import Database, DatabaseOptions
from dispatcher.store.horizon import HOLDERS, SAMPLE_EVERY_S, XminClock, oldest_xmin
from dispatcher.telemetry import Instruments
from tests.support.chaos.standby import ask, chain_of_servers
from tests.support.postgres import TestDatabase
from tests.support.waiting import until

NOTHING = dict.fromkeys(HOLDERS, 0)


async def use_transactions(connection: asyncpg.Connection, count: int) -> None:
    for _ in range(count):
        await connection.execute("SELECT pg_current_xact_id()")


@asynccontextmanager
async def snapshot(dsn: str) -> AsyncIterator[None]:
    """A session that has read something and left its transaction open, as a backup or an analyst does."""
    other = await asyncpg.connect(dsn)
    try:
        async with other.transaction(isolation="repeatable_read", readonly=True):
            await other.fetchval("SELECT count(*) FROM pg_class")
            yield
    finally:
        await other.close()


@asynccontextmanager
async def as_nobody(connection: asyncpg.Connection, database: TestDatabase) -> AsyncIterator[Database]:
    """The store as a role of its own that has no right but to connect."""
    role = f"looker_{uuid4().hex[:12]}"
    await connection.execute(f"CREATE ROLE {role} LOGIN")
    try:
        dsn = database.dsn.replace(f"//{await connection.fetchval('SELECT current_user')}", f"//{role}")
        assert role in dsn
        async with Database.open(DatabaseOptions(dsn, one_tenant=False)) as store:
            assert await store.fetchval("SELECT current_user") == role
            yield store
    finally:
        await connection.execute(f"DROP ROLE {role}")


async def test_nothing_is_held_where_nothing_is_open(db: Database, connection: asyncpg.Connection) -> None:
    await use_transactions(connection, 20)
    next_xid, ages = await oldest_xmin(db)
    assert ages == NOTHING
    assert next_xid > 20


async def test_an_open_snapshot_of_another_role_is_seen_by_one_without_any_right(
    database: TestDatabase, connection: asyncpg.Connection
) -> None:
    async with as_nobody(connection, database) as store:
        async with snapshot(database.dsn):
            await use_transactions(connection, 20)
            _, ages = await oldest_xmin(store)
            assert ages == NOTHING | {"session": 20}
        await use_transactions(connection, 1)
        assert (await oldest_xmin(store))[1] == NOTHING


async def test_a_transaction_that_has_written_and_sleeps_is_seen(
    database: TestDatabase, db: Database, connection: asyncpg.Connection
) -> None:
    other = await asyncpg.connect(database.dsn)
    try:
        async with other.transaction():
            await other.execute("SELECT pg_current_xact_id()")
            await use_transactions(connection, 5)
            assert (await oldest_xmin(db))[1]["session"] == 6
    finally:
        await other.close()


async def test_another_database_of_the_server_holds_nothing_of_ours(
    db: Database, empty_database: TestDatabase, connection: asyncpg.Connection
) -> None:
    async with snapshot(empty_database.dsn):
        await use_transactions(connection, 5)
        assert (await oldest_xmin(db))[1] == NOTHING


async def test_a_prepared_transaction_that_nobody_finishes_holds_too(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path / "pg", settings={"max_prepared_transactions": "2"}) as server:
        connection = await asyncpg.connect(server.dsn)
        try:
            await connection.execute("CREATE TABLE t (n integer)")
            await connection.execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'left behind'")
            await use_transactions(connection, 9)
            async with Database.open(DatabaseOptions(server.dsn, one_tenant=False)) as store:
                assert (await oldest_xmin(store))[1] == NOTHING | {"prepared": 10}
                await connection.execute("ROLLBACK PREPARED 'left behind'")
                assert (await oldest_xmin(store))[1] == NOTHING
        finally:
            await connection.close()


FEEDBACK = ("SET hot_standby_feedback = on", "SET wal_receiver_status_interval = '1s'")


async def test_a_query_on_a_standby_holds_by_its_feedback_and_by_its_slot(tmp_path: Path) -> None:
    async with (
        EmbeddedPostgres(tmp_path / "pg") as primary,
        chain_of_servers(tmp_path, 1) as (standby,),
        Database.open(DatabaseOptions(primary.dsn, one_tenant=False)) as store,
    ):
        await standby.follow(primary.dsn)
        for setting in FEEDBACK:
            await ask(standby.dsn, f"ALTER SYSTEM {setting}")
        await ask(standby.dsn, "SELECT pg_reload_conf()")
        connection = await asyncpg.connect(primary.dsn)
        try:
            async with snapshot(standby.dsn):
                await use_transactions(connection, 30)
                await until(lambda: _is_held(store, "standby"), 20)
                await ask(primary.dsn, "SELECT pg_create_physical_replication_slot('kept')")
                await ask(standby.dsn, "ALTER SYSTEM SET primary_slot_name = 'kept'")
                await ask(standby.dsn, "SELECT pg_reload_conf()")
                await until(lambda: _is_held(store, "slot"), 20)
        finally:
            await connection.close()


async def _is_held(store: Database, holder: str) -> bool:
    _, ages = await oldest_xmin(store)
    return ages[holder] >= 30


async def test_the_gauges_follow_and_are_empty_while_the_database_is_away(
    database: TestDatabase, connection: asyncpg.Connection
) -> None:
    instruments = Instruments.silent()
    async with Database.open(DatabaseOptions(database.dsn, one_tenant=False)) as store:
        watch = asyncio.create_task(horizon.watch(store, instruments, 0.02))

        def ages() -> dict[str, float]:
            return {point[1]["dispatcher.xmin.holder"]: point[0] for point in instruments.xmin_age._points}

        async def sees(wanted: dict[str, float]) -> None:
            async def does() -> bool:
                return ages() == wanted

            await until(does)

        try:
            await sees(NOTHING)
            async with snapshot(database.dsn):
                await use_transactions(connection, 3)
                await sees(NOTHING | {"session": 3})
                await until(_held_for(instruments, 0.1))
            await use_transactions(connection, 1)
            await sees(NOTHING)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(horizon, "OLDEST_XMIN", "SELECT no_such_column")
                await sees({})
            await sees(NOTHING)
        finally:
            watch.cancel()
            await asyncio.wait([watch])


def _held_for(instruments: Instruments, wanted_s: float) -> Any:
    async def is_held() -> bool:
        return any(point[0] >= wanted_s for point in instruments.xmin_held_s._points)

    return is_held


def test_an_age_in_transactions_is_turned_into_one_in_seconds() -> None:
    clock = XminClock()
    assert clock.held_s(100, 1000, {"session": 0}) == {"session": 0}
    assert clock.held_s(110, 1500, {"session": 200}) == {"session": 10}, "1300 was to come at 100"
    assert clock.held_s(120, 2000, {"session": 700, "slot": 400}) == {"session": 20, "slot": 10}
    assert clock.held_s(130, 2000, {"session": 700}) == {"session": 30}


def test_what_was_old_before_the_first_look_is_at_least_as_old_as_that() -> None:
    clock = XminClock()
    assert clock.held_s(100, 1000, {"slot": 900}) == {"slot": 0}
    assert clock.held_s(160, 1001, {"slot": 901}) == {"slot": 60}


def test_looking_every_second_forgets_nothing_of_a_day() -> None:
    clock = XminClock()
    held = [clock.held_s(second, 1000 + second, {"session": second})["session"] for second in range(86_401)]
    assert held[7200] == 7200
    assert held[-1] == 86_400
    assert len(clock._samples) <= 86_400 / SAMPLE_EVERY_S + 2


def test_looking_every_second_tells_of_a_new_transaction_within_the_distance_of_samples() -> None:
    clock = XminClock()
    for second in range(1000):
        held = clock.held_s(second, 1000 + second, {"session": 100})["session"]
    assert 100 <= held <= 100 + SAMPLE_EVERY_S


def test_a_server_restored_to_an_earlier_time_starts_the_clock_anew() -> None:
    clock = XminClock()
    clock.held_s(100, 1000, {"session": 0})
    assert clock.held_s(200, 500, {"session": 10}) == {"session": 0}
    assert clock.held_s(210, 600, {"session": 110}) == {"session": 10}
